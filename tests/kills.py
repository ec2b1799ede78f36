"""Runs the command line in a process of its own, and kills it."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COMMAND = [sys.executable, "-m", "ppo1_lightning", "env=cartpole", "debug=default"]
COMMAND += ["algo.update_epochs=2"]
COMMAND += ["trainer.accelerator=cpu", "callbacks.checkpoint.every_n_iterations=3"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a run in ``folder`` in a process group of its own; its output goes to ``out.txt``."""
    with folder.with_suffix(".txt").open("a") as output:
        return subprocess.Popen(
            [*COMMAND, f"hydra.run.dir={folder}", "resume=auto", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def output_of(folder: Path) -> str:
    """Return what all runs in ``folder`` have printed so far."""
    return folder.with_suffix(".txt").read_text()


def finish(folder: Path, *words: str, timeout: float = 120) -> int:
    """Run until the end and return the exit status."""
    process = start(folder, *words)
    try:
        return process.wait(timeout)
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children, if they still run."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_rows(folder: Path, process: subprocess.Popen[str], seconds: float = 200) -> None:
    """Wait until a process has changed the CSV file in ``folder``."""
    path = folder / "csv" / "metrics.csv"
    before = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime_ns != before:
            return
        time.sleep(0.005)
    raise AssertionError(f"no training within {seconds} s:\n{output_of(folder)}")


def kill_at_random(folder: Path, chance: random.Random, *words: str) -> None:
    """Start a run and kill it somewhere in its first second of training."""
    process = start(folder, *words)
    try:
        wait_for_rows(folder, process)
        time.sleep(chance.uniform(0, 0.7))
        assert process.poll() is None, output_of(folder)
    finally:
        kill(process)


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for a condition; it is an error if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV file."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each scalar, as TensorBoard shows them."""
    accumulator = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
