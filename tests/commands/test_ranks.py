"""Jobs of several processes, alone and in sweeps: real command lines, real ranks, gloo."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = ["debug=default", "trainer.accelerator=cpu", "logger=csv", "compile=false"]
OWN = ["env=gymnasium", "trainer.devices=2"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start the command line in an empty folder."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "ppo1_lightning", *words, *TINY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit status and stderr."""
    _, errors = process.communicate(timeout=200)
    return process.returncode, errors


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]


def test_sweep_over_devices_and_seeds(tmp_path: Path) -> None:
    words = ["-m", "trainer.devices=1,2", "seed=1,2", "hydra.sweep.dir=sweep", "env=cartpole"]
    status, errors = finish(start(tmp_path, *words))
    assert status == 0, errors
    assert {file.name for file in tmp_path.iterdir()} == {"sweep"}
    produced = {file.name for file in (tmp_path / "sweep").iterdir()}
    assert produced == {*"0123", "multirun.yaml", "report.html"}
    one_1, one_2, two_1, two_2 = (rows(tmp_path / "sweep" / str(job)) for job in range(4))
    assert one_1 != one_2
    for one, two in ((one_1, two_1), (one_2, two_2)):
        assert len(one) == len(two) == 3
        for ours, theirs in zip(one, two, strict=True):
            for name, value in ours.items():
                assert float(value) == pytest.approx(float(theirs[name]), abs=1e-4, nan_ok=True)


def test_failing_jobs_leave_the_others_alone(tmp_path: Path) -> None:
    ids = ",".join(f"launched_envs:{name}-v0" for name in ("Killed", "Crashing", "Fine"))
    words = ["-m", *OWN, f"env.id={ids}", "hydra.sweep.dir=sweep"]
    status, errors = finish(start(tmp_path, *words))
    assert status == 128 + signal.SIGKILL  # of the first that failed
    assert errors.count("error: rank 1 was ended by SIGKILL") == 1
    assert errors.count("KeyError: 'a bug'") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"sweep"}
    assert len(rows(tmp_path / "sweep" / "2")) == 3
    assert (tmp_path / "sweep" / "2" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_ranks_save_and_end_with_their_launcher(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    """A signal to the launcher alone; a job of a sweep takes the rest of the sweep with it."""
    words = ["-m", *OWN, "env.id=launched_envs:Slow-v0", "seed=1,2", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, *words, "total_iterations=1000000")
    files = [tmp_path / "pid_0", tmp_path / "pid_1"]
    try:
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        process.send_signal(number)
        assert finish(process)[0] == status
        wait_until(lambda: not any(is_running(int(file.read_text())) for file in files))
    finally:
        process.kill()
    assert (tmp_path / "sweep/0/checkpoints/last.ckpt").exists()
    assert not (tmp_path / "sweep/1").exists()


def wait_until(condition: object, seconds: float = 120.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
