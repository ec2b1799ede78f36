"""Files that are replaced: the old one or the new one, whatever fails."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
from faulty_files import Faults

from ppo1_lightning.errors import StorageError
from ppo1_lightning.runs.files import is_there, replacing


def write(path: Path) -> None:
    with replacing(path) as new:
        new.write_text("new")


def test_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write(file)
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_every_operation_may_fail(tmp_path: Path) -> None:
    file, at, failed = tmp_path / "file.txt", 1, True
    while failed:
        file.write_text("old")
        faults = Faults([tmp_path], at, errno.ENOSPC)
        with faults.installed(), suppress(StorageError):
            write(file)
        assert file.read_text() in ("old", "new")
        assert os.listdir(tmp_path) == ["file.txt"]
        failed, at = len(faults.done) >= at, at + 1
    assert at > 6


def test_an_error_of_who_writes_is_his(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")

    def fail() -> None:
        with replacing(file) as new:
            new.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_two_at_once(tmp_path: Path) -> None:
    """Each file is whole when it appears, and the last one stays."""
    file = tmp_path / "file.txt"
    with replacing(file) as new:
        new.write_text("half")
        write(file)
        assert file.read_text() == "new"
        new.write_text("whole")
    assert file.read_text() == "whole"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    foreign, file = tmp_path / "foreign.txt", tmp_path / "file.txt"
    foreign.write_text("foreign")
    file.symlink_to(foreign)
    write(file)
    assert foreign.read_text() == "foreign"
    assert not file.is_symlink()


def test_what_cannot_be_looked_at_is_not_missing(tmp_path: Path) -> None:
    assert is_there(tmp_path)
    assert not is_there(tmp_path / "no")
    with (
        Faults([tmp_path], 1, errno.EACCES).installed(),
        pytest.raises(StorageError, match=r"no cannot be looked at \(Permission denied\)"),
    ):
        is_there(tmp_path / "no")
