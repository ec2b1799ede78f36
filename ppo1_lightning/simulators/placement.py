"""Where a simulator's threads run.

A step of a small pool takes as long as waking a thread on another core that has gone idle. So a
pool's workers stay on a core each; and a single worker shares the core of the loop that it serves:
one of the two always waits for the other. Linux only; elsewhere nothing is moved.

EnvPool's own ``thread_affinity_offset`` counts the machine's cores from 0: it would put workers on
cores that taskset, SLURM or another rank has taken from this process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ppo1_lightning import system

_TASKS = Path("/proc/self/task")


def own_cores(ranks: int = 1, rank: int = 0) -> list[int]:
    """Return the share of one of several ranks of the cores that they all may use."""
    cores = system.cores()
    count = len(cores) // ranks
    return cores[rank * count : (rank + 1) * count]


@contextmanager
def started_threads() -> Iterator[list[int]]:
    """Yield a list which, at the end, holds the ids of the threads that were started meanwhile."""
    before, started = _threads(), list[int]()
    yield started
    started += sorted(_threads() - before)


def spread(threads: Sequence[int], cores: Sequence[int]) -> None:
    """Keep as many threads as there are cores on a core each."""
    for thread, core in zip(threads, cores, strict=True):
        system.keep_on(thread, {core})


@contextmanager
def shared_core(worker: int) -> Iterator[None]:
    """Keep this thread and a pool's only worker on the core that this thread is on."""
    core = system.current_core()
    # PyTorch's own threads would inherit the place of the one that starts them.
    if core < 0 or torch.get_num_threads() > 1:
        yield
        return
    before = system.cores()
    for thread in (0, worker):
        system.keep_on(thread, {core})
    try:
        yield
    finally:
        system.keep_on(0, before)


def _threads() -> set[int]:
    return {int(task.name) for task in _TASKS.iterdir()} if _TASKS.exists() else set()
