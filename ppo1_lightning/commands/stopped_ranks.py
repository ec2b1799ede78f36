"""Ranks that were stopped (SIGSTOP): the others would wait for them for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ppo1_lightning import system

log = logging.getLogger("ppo1_lightning")

PATIENCE = 20
"""Seconds for which a rank may be stopped while the process that started it is not: then it is
nothing that was done to all of the job, as a scheduler does to let another one pass."""

_PROCESSES = Path("/proc")


@contextmanager
def stopped_ranks_ended(count: int) -> Iterator[None]:
    """Meanwhile, kill a rank that has been stopped for `PATIENCE` seconds, and say so.

    That it is gone ends the others. Where the system does not show processes as Linux does, nothing
    is watched.

    Args:
        count: number of ranks, children of this process.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(count, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(count: int, over: threading.Event) -> None:
    ranks: list[int] = []
    seconds = [0] * count  # of this thread's own: it may be stopped too
    while not over.wait(1):
        if len(ranks) < count:
            ranks = _children()
            continue
        for rank, process in enumerate(ranks):
            seconds[rank] = seconds[rank] + 1 if _is_stopped(process) else 0
            if seconds[rank] == PATIENCE:
                log.error("rank %d has been stopped for %d s and is ended", rank, PATIENCE)
                system.end(process)


def _children() -> list[int]:
    """Return the ranks that this process has started, in that order."""
    found: list[int] = []
    for threads_own in _PROCESSES.glob("self/task/*/children"):
        with suppress(OSError):
            found += map(int, threads_own.read_text().split())
    return [process for process in found if b"spawn_main" in _read(process, "cmdline")]


def _is_stopped(process: int) -> bool:
    """Tell whether a process is stopped by a signal, and by no debugger."""
    return _read(process, "stat").rpartition(b")")[2].split()[:1] == [b"T"]


def _read(process: int, name: str) -> bytes:
    try:
        return (_PROCESSES / str(process) / name).read_bytes()
    except OSError:  # it has ended
        return b""
