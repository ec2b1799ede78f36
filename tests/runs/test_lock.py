"""One process writes a run's folder at a time."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.runs import lock

pytestmark = pytest.mark.heavy

HOLD = """
import sys, time
from pathlib import Path
from ppo1_lightning.runs import lock
lock.hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_until_its_process_ends(tmp_path: Path) -> None:
    process = holding(tmp_path)
    try:
        with pytest.raises(ConfigurationError, match="written by another process"):
            lock.hold(tmp_path)
    finally:
        process.kill()  # however it ends
        process.wait()
    lock.hold(tmp_path)
    lock.hold(tmp_path)  # its own
    lock.release(tmp_path)
    process = holding(tmp_path)
    process.kill()
    process.wait()


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    lock.hold(tmp_path)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    try:
        lock.release(tmp_path)
        process = holding(tmp_path)
        process.kill()
        process.wait()
    finally:
        child.kill()
        child.join()


def test_another_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    process = holding(tmp_path)
    try:
        lock.hold(tmp_path / "other")
        lock.release(tmp_path / "other")
    finally:
        process.kill()
        process.wait()
