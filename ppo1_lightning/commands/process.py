"""What the command line sets for its whole process, which a library must not.

Read before PyTorch is loaded, and so free of it.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

EXIT_STATUS = 2
"""Of a run that ended by a mistake of the user."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)
_USERS_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def spin_briefly() -> None:
    """Let OpenMP's threads sleep soon between two uses, unless the user has decided on it.

    GNU's spin for some 3 ms by default, as long as a step of Atari's simulators takes, on the cores
    that these need. OpenMP reads it when PyTorch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # some 20 us: from kernel to kernel


def imported(module: str) -> ModuleType:
    """Return a module of this folder; what it imports is never looked through for garbage.

    Python would do so again and again while it imports PyTorch, for a fifth of that time, and later
    between the iterations of a run.
    """
    name = f"{__package__}.{module}"
    if name not in sys.modules:  # else a sweep's earlier jobs have left their garbage
        looked = gc.isenabled()
        gc.disable()
        try:
            importlib.import_module(name)
        finally:
            gc.freeze()
            if looked:
                gc.enable()
    return sys.modules[name]


def keep_freed_memory() -> bool:
    """Keep freed memory for the next iteration, which needs the same again; return whether.

    glibc gives tensors of some MB back to the system when they are freed, and gets them anew page
    by page, zeroed: a seventh of a gradient step of the Nature CNN. It holds for the process and
    cannot be taken back, so it is for programs, not for libraries. Nothing is changed where the
    user has set glibc's own variables, or there is no glibc.
    """
    chosen = any(name in os.environ for name in _USERS_CHOICE)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def refuse_in_one_line() -> None:
    """Let argparse tell what is wrong with a command line as all other mistakes are told.

    Hydra makes a parser of its own, whose usage is a page and whose quotes are as they were typed.
    """
    argparse.ArgumentParser.error = _refuse_words  # type: ignore[method-assign]


def _refuse_words(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    refuse(f"{' '.join(message.split())}; see --help")


def refuse(message: str) -> NoReturn:
    """Exit with an error line: of a command without Hydra, or before it."""
    from ppo1_lightning.runs.untrusted import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(EXIT_STATUS)


@contextmanager
def outlive_readers() -> Iterator[None]:
    """Go on where nobody reads any more what is printed: ``... | head``, a terminal that is gone.

    What is printed then goes nowhere. Without it the first word would end a run of days, or each
    line of its log would be a traceback.
    """
    before = sys.stdout, sys.stderr
    streams = [_Unread(stream) for stream in before]
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in streams:
            stream.finish()
        sys.stdout, sys.stderr = before


class _Unread:
    """A stream that is the null device once nobody reads it; None: from the start.

    What cannot be written for another reason, as to a disk that is full for a while, is lost, and
    the next line is tried.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        """Stay open: an environment may close what the run goes on to write to."""
        self.flush()

    def finish(self) -> None:
        """Leave nothing that Python, at its end, would try to write, and fail."""
        try:
            self._stream.flush()
        except OSError:
            self._close()

    def _lose(self, error: OSError) -> None:
        if error.errno in _NOBODY_READS:
            self._close()

    def _close(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
