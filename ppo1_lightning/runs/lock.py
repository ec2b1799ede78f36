"""One process writes a run's folder at a time."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from ppo1_lightning import system
from ppo1_lightning.errors import ConfigurationError

log = logging.getLogger("ppo1_lightning")

_held: dict[Path, int] = {}
"""Descriptors of the folders that this process writes; the system lets go of them with it."""


def hold(folder: Path) -> None:
    """Keep other processes from writing a folder, until `release` or this process's end.

    It is a lock of the system's on the folder itself (``flock``), so that it ends with the process,
    however that ends. Where the file system has none, as some in a network, a line says so.

    Raises:
        ConfigurationError: another process holds it.
    """
    place = folder.resolve()
    if place in _held or not place.is_dir():
        return
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except OSError as error:
        _tell_unlocked(folder, error)
        return
    try:
        system.lock(descriptor)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise ConfigurationError(
                f"{folder} is being written by another process, expected one at a time: wait for "
                "it, or choose another folder"
            ) from None
        _tell_unlocked(folder, error)
        return
    _held[place] = descriptor


def _tell_unlocked(folder: Path, error: OSError) -> None:
    log.warning("%s cannot be locked (%s): start no second run there", folder, error.strerror)


def release(folder: Path) -> None:
    """Let other processes write the folder."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        system.unlock(descriptor)
        os.close(descriptor)


def _forget() -> None:
    """Close what a forked child has of its parent's: it would keep the lock beyond its end."""
    while _held:
        os.close(_held.popitem()[1])


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)
