"""Where a simulator's threads run.

A step of a small pool takes as long as waking a thread on another core that has gone idle. So a
pool's workers stay on a core each; and a single worker shares the core of the loop that it serves:
one of the two always waits for the other. Linux only; elsewhere nothing is moved.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_TASKS = Path("/proc/self/task")


class Placement:
    """The cores of one pool's workers.

    Args:
        workers: thread ids, see `started_threads`.
        cores: those that are this process's own, with several ranks on the machine its share.
    """

    def __init__(self, workers: Sequence[int], cores: Sequence[int]) -> None:
        self._worker = workers[0] if len(workers) == 1 else None
        # Fewer workers than cores stay free, lest other runs on this machine take the same cores.
        if len(workers) == len(cores) > 1:
            for worker, core in zip(workers, cores, strict=True):
                _move(worker, {core})

    @contextmanager
    def shared_core(self) -> Iterator[None]:
        """Keep this thread and a pool's only worker on the core that this thread is on."""
        # PyTorch's own threads would inherit the place of the one that starts them.
        core = _current_core() if self._worker and torch.get_num_threads() == 1 else None
        if core is None or self._worker is None:
            yield
            return
        before = os.sched_getaffinity(0)
        for thread in (0, self._worker):
            _move(thread, {core})
        try:
            yield
        finally:
            _move(0, before)


@contextmanager
def started_threads() -> Iterator[list[int]]:
    """Yield a list which, at the end, holds the ids of the threads that were started meanwhile."""
    before, started = _threads(), list[int]()
    yield started
    started += sorted(_threads() - before)


def own_cores(ranks: int, rank: int) -> list[int]:
    """Return the share of one of several ranks of the cores that they all may use."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range((os.cpu_count() or 1) // ranks))
    cores = sorted(os.sched_getaffinity(0))
    count = len(cores) // ranks
    return cores[rank * count : (rank + 1) * count]


def _threads() -> set[int]:
    return {int(task.name) for task in _TASKS.iterdir()} if _TASKS.exists() else set()


def _move(thread: int, cores: Collection[int]) -> None:
    with suppress(OSError):  # not allowed here, or the thread is gone: it stays where it is
        os.sched_setaffinity(thread, cores)


def _current_core() -> int | None:
    """Return the core that runs this thread, None where that cannot be known."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        core = ctypes.CDLL(None).sched_getcpu()
    except (AttributeError, OSError):
        return None
    return core if core >= 0 else None
