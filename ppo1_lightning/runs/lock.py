"""One process writes a run's folder at a time."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ppo1_lightning.errors import ConfigurationError

log = logging.getLogger("ppo1_lightning")

NAME = ".lock"

_held: dict[Path, int] = {}
"""Descriptors of the folders that this process writes; the system lets go of them with it."""


def hold(folder: Path) -> None:
    """Keep other processes from writing a folder, until `release` or this process's end.

    It is a lock of the system's (``flock``), so that it ends with the process, however that ends.
    Where the file system has none, as some in a network, a line says so.

    Raises:
        ConfigurationError: another process holds it.
    """
    place = folder.resolve()
    if place in _held or not place.is_dir():
        return
    try:
        import fcntl

        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(place / NAME, flags, 0o644)
    except (ImportError, OSError) as error:
        log.debug("%s cannot be locked: %s", folder, error)  # who writes there will say why not
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        by = os.read(descriptor, 20).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise ConfigurationError(
            f"{folder} is being written by another process{f' ({by})' if by.isdigit() else ''}, "
            "expected one at a time: wait for it, or choose another folder"
        ) from None
    except OSError as error:
        os.close(descriptor)
        log.warning("%s cannot be locked (%s): start no second run there", folder, error.strerror)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held[place] = descriptor


def release(folder: Path) -> None:
    """Let other processes write the folder."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
