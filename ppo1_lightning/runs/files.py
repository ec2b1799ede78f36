"""Files of a run that are replaced as a whole: whatever fails, there is the old one or the new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from ppo1_lightning.errors import StorageError, one_line


def temporary(path: Path) -> Path:
    """Return where a run writes ``path`` first: a rename is atomic only within a folder.

    The same at each start, so that what a kill left is written over.
    """
    return path.with_name(f".tmp_{path.name}")


@contextmanager
def replacing(path: Path, *, make_folder: bool = False) -> Iterator[Path]:
    """Give where to write a file anew, which is synced and takes its place at the end.

    Nobody else writes there, though another process may be replacing the same file, as a second
    ``record``; one that is killed leaves a ``.tmp_*``.

    Args:
        make_folder: make the folder that it is in, where there is none.

    Raises:
        StorageError: it cannot be written; what was at ``path`` is as it was.
    """
    new = path.with_name(f".tmp_{token_hex(8)}{path.suffix}")  # FFmpeg goes by the ending
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        put_in_place(new, path)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise StorageError(f"{path} could not be written ({reason})") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """Tell whether there is a file: not merely whether it can be looked at.

    Raises:
        StorageError: that cannot be told.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageError(f"{path} cannot be looked at ({error.strerror})") from error
    return True


def put_in_place(new: Path, path: Path) -> None:
    """Move a file over ``path``: after a crash there is the old file or the new one."""
    sync(new)
    os.replace(new, path)
    if os.name == "posix":  # make the rename last; other systems cannot open a folder
        sync(path.parent, os.O_RDONLY)


def give_second_name(path: Path, name: Path) -> None:
    """Let the file at ``path`` be at ``name`` too, in the place of what is there."""
    temporary(name).unlink(missing_ok=True)
    try:
        os.link(path, temporary(name))
    except OSError:  # not every file system can
        shutil.copyfile(path, temporary(name))
        sync(temporary(name))
    os.replace(temporary(name), name)


def sync(path: Path, flags: int = os.O_RDWR) -> None:
    """Put a file or folder on the disk itself, out of reach of a power cut."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
