"""Signals that ask a run to stop: noted when they come, acted on when an iteration is whole."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ppo1_lightning import system

log = logging.getLogger("ppo1_lightning")

REPEAT_SECONDS = 1.0
"""Between two SIGTERMs that count as two: launchers pass on what the group has got already."""


class StopSignals:
    """Catches SIGINT, SIGTERM and, in a SLURM job, SIGUSR1; the second one stops at once.

    Attributes:
        told: number of the signal that asked this process to stop, 0 for none.
    """

    def __init__(self) -> None:
        self.told = 0
        self._at_once: Callable[[], bool] | None = None
        self._since = 0.0
        self._handlers: dict[int, Any] = {}  # the ones that ours stand in for

    def catch(self, at_once: Callable[[], bool] | None = None) -> None:
        """Take the signals over, in the main thread; a user's own SIGINT handler stays.

        ``at_once`` tells whether the first one may stop at once, too: nothing is lost by it, as
        while an evaluation plays or a compiler works.

        Lightning's own handlers will not do: with several ranks, the one for SIGTERM calls a
        collective from wherever the signal came in, and the ranks hang; the one for SIGUSR1 saves
        in the middle of an update.
        """
        self.told, self._at_once = 0, at_once
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._catch(signal.SIGINT)
        self._catch(signal.SIGTERM)
        if system.REQUEUE is not None and SLURMEnvironment.detect():
            self._catch(system.REQUEUE)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:  # Lightning may have replaced it
                signal.signal(number, handler)
        self._handlers.clear()

    def _catch(self, number: int) -> None:
        self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.told and self._at_once is not None and self._at_once():
            log.warning("%s: stopping", signal.Signals(number).name)
            self.told, self._since = number, now
            raise SystemExit(system.exit_status(number))
        if self.told and number == signal.SIGTERM and now - self._since > REPEAT_SECONDS:
            raise SystemExit(system.exit_status(number))
        if not self.told:
            log.warning(
                "%s: finishing this iteration; once more stops at once", signal.Signals(number).name
            )
            self._since = now
        self.told = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Let a SIGTERM end what is under way as Ctrl-C does, so that it can put away what it began.

    Only the main thread can take a signal over: elsewhere nothing is changed.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once more would end what puts away
        raise SystemExit(system.exit_status(number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not of Python's


@contextmanager
def exit_status_of_signals() -> Iterator[None]:
    """Give a process that Lightning ends because of a signal the status that goes with it."""
    try:
        yield
    except SIGTERMException:  # before the first iteration
        raise SystemExit(system.exit_status(signal.SIGTERM)) from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise SystemExit(system.exit_status(signal.SIGINT)) from None
        raise


def requeue_slurm_job() -> None:
    """Ask SLURM to run this job again, unless Lightning was told not to (``auto_requeue``)."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True)
    except OSError as error:
        log.warning("SLURM job %s was not requeued: %s", job, error)
        return
    if done.returncode:
        log.warning("SLURM job %s was not requeued: %s", job, done.stderr.decode().strip())
    else:
        log.info("SLURM job %s is requeued", job)
