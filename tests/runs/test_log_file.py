"""A log that cannot be written is told once, and ends nothing."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
from faulty_files import Faults

from ppo1_lightning.runs.log_file import LogFile


def emit(path: Path, messages: int) -> None:
    handler = LogFile(path, delay=True)
    for number in range(messages):
        handler.handle(logging.makeLogRecord({"msg": f"message {number}"}))
    handler.close()


def test_messages_are_written(tmp_path: Path) -> None:
    emit(tmp_path / "train.log", 2)
    assert (tmp_path / "train.log").read_text() == "message 0\nmessage 1\n"


@pytest.mark.parametrize("at", [1, 2])
def test_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int) -> None:
    """When it is opened, and when it is written."""
    faults = Faults([tmp_path], at, errno.ENOSPC)
    with faults.installed():
        emit(tmp_path / "train.log", 3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "train.log cannot be written (No space left on device)" in said


def test_a_folder_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emit(tmp_path / "gone" / "train.log", 3)
    assert capsys.readouterr().err.count("\n") == 1
