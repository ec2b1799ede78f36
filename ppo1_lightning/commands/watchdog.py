"""What looks at a command from a thread of its own, for its main thread may hang in an environment.

Python acts on a signal when the main thread comes back to it: never, where a library waits in C++.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from ppo1_lightning import system
from ppo1_lightning.runs.signals import REPEAT_SECONDS
from ppo1_lightning.simulators import hanging
from ppo1_lightning.system import exit_status

log = logging.getLogger("ppo1_lightning")

GRACE = 4.0
"""Seconds that a step may last after a signal before the signal is repeated, and so on."""

PERIOD = 1.0
"""Seconds between two looks."""

HUNG = 2
"""Exit status where an environment hangs."""


@contextmanager
def watching(tell: Callable[[str], None]) -> Iterator[Watch | None]:
    """Watch the main thread meanwhile; end the process where an environment does not return.

    - A call of a simulator that lasts longer than ``env.timeout`` is told in one line, and ends
      the process.
    - One that lasts `GRACE` seconds longer than a signal to stop is told, and gets the signal once
      more; so does who asked for this process to stop twice.
    - Where that does not help, the process ends without the main thread.
    - A process that multiprocessing started, as joblib's jobs and ranks are, and whose parent is
      gone, is asked to stop; it is then an orphan, see `Watch`.

    Args:
        tell: prints an error.

    Yields:
        What watches, None in another thread than the main one: there nothing is watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watch = Watch(receiver, tell)
    watch.start()
    try:
        yield watch
    finally:
        signal.set_wakeup_fd(before)
        sender.shutdown(socket.SHUT_WR)  # ends the thread; to close it would not: forks have it too
        watch.join()
        sender.close()
        receiver.close()


class Watch(threading.Thread):
    """Looks at the main thread once a second, and at once when a signal comes.

    Attributes:
        is_orphan: the process that started this one is gone.
    """

    def __init__(self, signals: socket.socket, tell: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._signals, self._tell = signals, tell
        self._main = threading.main_thread().ident or 0
        self._call: FrameType | None = None
        self._since = 0.0  # when the call was first seen
        self._number, self._told, self._again = 0, 0.0, False
        self._clock, self._ticked = 0.0, time.monotonic()
        self._parent = _parent()
        self.is_orphan = False

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([self._signals], [], [], PERIOD)
            numbers = self._signals.recv(64) if ready else None
            if numbers == b"":
                return
            for number in numbers or b"":
                self._note(number)
            self._look()

    def _now(self) -> float:
        """Return seconds, without those in which the whole process was stopped (Ctrl-Z, SLURM)."""
        ticked = time.monotonic()
        self._clock += min(ticked - self._ticked, 2 * PERIOD)
        self._ticked = ticked
        return self._clock

    def _note(self, number: int) -> None:
        """Take down a signal that asks the process to stop, and whether it is the second one."""
        now = self._now()
        if number not in (*system.STOPS, system.REQUEUE):
            return
        if not self._number:
            self._number, self._told = number, now
        elif number == signal.SIGINT or now - self._told > REPEAT_SECONDS:  # as `StopSignals`
            self._number, self._told, self._again = number, now, True

    def _look(self) -> None:
        if self._parent not in (None, os.getppid()) and not self.is_orphan:
            self.is_orphan = True
            if not self._number:  # else it stops already
                log.warning("the command that started this job has ended: stopping")
                os.kill(os.getpid(), signal.SIGTERM)
        now, call = self._now(), hanging.call_under_way(self._main)
        if call is not self._call:
            self._call, self._since = call, now
        hangs = call is not None and now - max(self._told, self._since) > GRACE
        if self._again and (hangs or now - self._told > 2 * GRACE):
            _end_now(exit_status(self._number))
        if self._number and not self._again and call is not None and hangs:
            log.warning("%s does not return: stopping", hanging.waits_for(call, self._main))
            os.kill(os.getpid(), self._number)  # comes back as the second one
        if call is not None and now - self._since > (seconds := hanging.timeout_of(call)):
            which = hanging.waits_for(call, self._main)
            self._tell(f"{which} has not returned for {seconds:g} s (env.timeout)")
            _end_now(HUNG)


def _parent() -> int | None:
    """Return the process that multiprocessing has started this one from, 0 where it is gone.

    By its number: joblib's processes do not have what `is_alive` looks at.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return None
    return os.getppid() if system.is_running(parent.pid or 0) else 0


def end_orphan(watch: Watch | None) -> None:
    """End this process if it is an orphan: one of joblib's would wait for another job."""
    if watch is not None and watch.is_orphan:
        _end_now(exit_status(signal.SIGTERM))


def _end_now(status: int) -> NoReturn:
    """End this process and its children, whatever the main thread does."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    os._exit(status)


def _be_no_watched_process() -> None:
    """Let go of what a forked child has of its parent's: its signals are not its parent's."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_be_no_watched_process)
