"""What not every operating system has, and what stands in for it.

All of these are used where they are; training, evaluation, resuming and reports need none.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

STOPS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a process to end."""
HANG_UP: signal.Signals | None = None
"""By which a terminal that is closed says so."""
REQUEUE: signal.Signals | None = None
"""By which SLURM announces the end of a job's time."""
if sys.platform != "win32":
    STOPS = (*STOPS, signal.SIGHUP, signal.SIGQUIT)
    HANG_UP, REQUEUE = signal.SIGHUP, signal.SIGUSR1


def exit_status(number: int) -> int:
    """Return the exit status of a process that a signal ended, as shells have it."""
    return 128 + number


def cores() -> list[int]:
    """Return the cores that this process may use; all of the machine where that is not known."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_on(thread: int, cores: Collection[int]) -> None:
    """Keep a thread on these cores, where the system can: 0 is this one."""
    if sys.platform == "linux":
        with suppress(OSError):  # not allowed here, or the thread is gone: it stays where it is
            os.sched_setaffinity(thread, cores)


def current_core() -> int:
    """Return the core that runs this thread, -1 where that cannot be known."""
    try:
        return ctypes.CDLL(None).sched_getcpu()
    except (AttributeError, OSError, TypeError):
        return -1


def memory() -> float:
    """Return the bytes that this process can have, infinity where the system does not say."""
    if sys.platform == "win32":
        return math.inf
    import resource

    try:
        own, _ = resource.getrlimit(resource.RLIMIT_AS)
        own = math.inf if own == resource.RLIM_INFINITY else own
        return min(own, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return math.inf


class StartUp:
    """The seconds from the start of a command to its first environment step.

    Attributes:
        began: when it started, in seconds since boot; None where the system does not say, for who
            is no command, and once the seconds have been told.
    """

    def __init__(self) -> None:
        self.began: float | None = None
        self._is_first = True

    def begin(self, began: float | None = None) -> None:
        """Count from then, from the start of this process, or from now: a sweep's later jobs."""
        if began is None:
            began = _process_began() if self._is_first else _since_boot()
        self.began, self._is_first = began, False

    def end(self) -> float | None:
        """Return the seconds, and count no more."""
        began, self.began = self.began, None
        now = _since_boot()
        return None if began is None or now is None else now - began


def _since_boot() -> float | None:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else None


def _process_began() -> float | None:
    if sys.platform != "linux":
        return None
    try:
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except OSError:
        return None
    return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): field 22


start_up = StartUp()


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Lock an open file or folder (``flock``); the system lets go of it with the process.

    Windows has nothing of the kind for a folder: there nothing is locked.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
        OSError: the file system has no locks.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def unlock(descriptor: int) -> None:
    """Let go of what `lock` holds, also in children, which have it as well."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_own(status: os.stat_result) -> bool:
    """Whether a file is this user's, and nobody else may write to it.

    Windows keeps a user's folders by other means.
    """
    if sys.platform == "win32":
        return True
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def is_running(process: int) -> bool:
    """Whether a process is there; True where that cannot be asked."""
    try:
        if sys.platform != "win32":
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def leave_terminal() -> None:
    """Be no process of the terminal's any more: its Ctrl-C does not come here."""
    if sys.platform != "win32":
        os.setsid()


def end(process: int) -> None:
    """Kill a process; it may have ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)


def end_group(process: int) -> None:
    """Kill a process and those of its group: it leads one of its own; it may have ended."""
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            os.kill(process, signal.SIGTERM)
        else:
            os.killpg(process, signal.SIGKILL)


def leave_group() -> None:
    """Be no process of the parent's group any more: a signal to all of it does not come here."""
    if sys.platform != "win32":
        os.setpgid(0, 0)
