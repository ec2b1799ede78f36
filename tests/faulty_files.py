"""File operations of this process that fail on demand: one of those in some folders, by its number.

Python's own are stood in for, so what a library does in C++ is not seen; all that a run writes goes
through Python.
"""

from __future__ import annotations

import builtins
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

BY_PATH = ["open", "stat", "lstat", "mkdir", "unlink", "remove", "rename", "replace", "link"]
BY_PATH += ["truncate", "listdir", "scandir", "rmdir", "utime", "chmod"]
BY_DESCRIPTOR = ["fsync", "ftruncate", "sendfile", "fdatasync"]
WRITING = {
    "write",
    "mkdir",
    "unlink",
    "remove",
    "rename",
    "replace",
    "link",
    "truncate",
    "sendfile",
}


class Faults:
    """Counts what is done in ``folders``; the operation number ``at`` (from 1) raises ``errno``.

    Args:
        for_good: let all that write from then on fail too, as on a disk that is full.

    Attributes:
        done: operations so far, as ``"write metrics.csv"``.
    """

    def __init__(
        self, folders: Sequence[Path], at: int = 0, errno: int = 0, *, for_good: bool = False
    ) -> None:
        self._folders = [f"{folder}{os.sep}" for folder in folders]
        self._at, self._errno, self._for_good = at, errno, for_good
        self._lock = threading.Lock()
        self.done: list[str] = []

    def count(self, operation: str, file: Any) -> None:
        """Take down an operation, or let it fail."""
        path = _path(file)
        if not any(f"{path}{os.sep}".startswith(folder) for folder in self._folders):
            return
        with self._lock:
            self.done.append(f"{operation} {os.path.basename(path)}")
            fails = len(self.done) == self._at
            if self._for_good and len(self.done) > self._at > 0:
                fails = operation in WRITING
        if fails:
            raise OSError(self._errno, os.strerror(self._errno), path)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in for Python's file operations meanwhile."""
        patches = [patch.object(os, name, self._counted(name)) for name in BY_PATH + BY_DESCRIPTOR]
        opener = self._open(io.open)
        patches += [patch.object(io, "open", opener), patch.object(builtins, "open", opener)]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in reversed(patches):
                one.stop()

    def _counted(self, name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def operation(file: Any = ".", *arguments: Any, **named: Any) -> Any:
            self.count(name, file)
            return original(file, *arguments, **named)

        return operation

    def _open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        faults = self

        class Raw(io.FileIO):
            """A file whose every access counts."""

            def write(self, data: Any) -> int:
                faults.count("write", self.name)
                return super().write(data)

            def readinto(self, buffer: Any) -> int | None:  # type: ignore[override]
                faults.count("read", self.name)
                return super().readinto(buffer)

            def readall(self) -> bytes:
                faults.count("read", self.name)
                return super().readall()

            def truncate(self, size: int | None = None) -> int:
                faults.count("truncate", self.name)
                return super().truncate(size)

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            path = _path(file)
            if not any(path.startswith(folder) for folder in faults._folders):
                return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
            faults.count("open", file)
            raw: Any = Raw(file, mode.replace("t", ""), closefd, opener)  # type: ignore[arg-type]
            if buffering != 0:
                both, writes = "+" in mode, not raw.readable()
                kind = io.BufferedRandom if both else io.BufferedWriter if writes else None
                raw = (kind or io.BufferedReader)(raw)
            if "b" in mode:
                return raw
            text = io.TextIOWrapper(raw, encoding, errors, newline, buffering == 1)
            text.mode = mode  # type: ignore[misc]
            return text

        return opened


def _path(file: Any) -> str:
    """Return the absolute path of a name or of an open file's descriptor, "" where it has none."""
    try:
        if isinstance(file, int):
            return os.readlink(f"/proc/self/fd/{file}")
        return os.path.abspath(os.fsdecode(file))
    except (OSError, TypeError, ValueError):
        return ""
