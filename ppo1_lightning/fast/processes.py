"""Compilers as processes, which threads wait for: they end with who asked for them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ppo1_lightning import system

_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()
_ended = False


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Return what a compiler said and how it ended.

    Raises:
        RuntimeError: it was to start after `ended_with_us` has ended all.
    """
    with _lock:
        if _ended:
            raise RuntimeError(f"{command[0]}: the run has been told to stop")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0 if os.name == "posix" else None,  # with the compilers that it starts
        )
        _running.add(process)
    try:
        with process:
            output, errors = process.communicate()
    finally:
        _running.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextmanager
def ended_with_us() -> Iterator[None]:
    """End all compilers where the program is to end meanwhile, by a signal.

    Python would wait for the threads that wait for them.
    """
    global _ended
    _ended = False
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        with _lock:
            _ended = True
            for process in list(_running):
                system.end_group(process.pid)
        raise
