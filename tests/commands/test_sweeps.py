"""Sweeps whose jobs run at the same time, by the launchers of the extras ``sweep`` and ``ray``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import hydra
import pytest
from kills import is_running, wait_until

from ppo1_lightning.commands import config as cli

NO_RAY = find_spec("hydra_plugins.hydra_ray_launcher") is None
TINY = ["debug=default", "trainer.accelerator=cpu", "logger=csv", "compile=false"]


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], id="joblib"),
        pytest.param(
            ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"],
            id="submitit",
        ),
        pytest.param(
            ["hydra/launcher=ray"], id="ray", marks=pytest.mark.skipif(NO_RAY, reason="extra")
        ),
    ],
)
def test_jobs_at_the_same_time(launcher: list[str], tmp_path: Path) -> None:
    """Of one and two devices; one is a mistake, which ends neither of the others."""
    jobs = ["algo.clip_coef=0.2,-1", "trainer.devices=1,2", "hydra.sweep.dir=sweep"]
    done = subprocess.run(
        [sys.executable, "-m", "ppo1_lightning", "-m", *TINY, *jobs, *launcher],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ,
        timeout=280,
    )
    assert done.returncode == 2, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"sweep"}
    finished = {file.parents[1].name for file in tmp_path.glob("sweep/*/checkpoints/last.ckpt")}
    assert finished == {"0", "1"}
    first, second = (tmp_path / "sweep" / job / "csv" / "metrics.csv" for job in "01")
    assert len(first.read_text().splitlines()) == len(second.read_text().splitlines()) == 4
    assert "clip_coef=-1" in (tmp_path / "sweep" / "2" / "train.log").read_text()
    assert done.stdout.splitlines()[-1] == "report of the sweep: sweep/report.html"
    assert "devices 1" in (tmp_path / "sweep" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGTERM, os.kill), (signal.SIGKILL, os.kill), (signal.SIGTERM, os.killpg)],
    ids=["SIGTERM", "SIGKILL", "SIGTERM to all"],
)
def test_jobs_end_with_their_command(
    number: signal.Signals, send: Callable[[int, int], None], tmp_path: Path
) -> None:
    """They finish an iteration of some seconds, and save it."""
    words = ["env=cartpole", "total_steps=1_000_000_000", "seed=0,1", "hydra.sweep.dir=sweep"]
    words += [*TINY[1:], "num_steps=1024", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, "-m", "ppo1_lightning", "-m", *words]
    sweep = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    jobs = [tmp_path / "sweep" / job for job in "01"]
    wait_until(lambda: all((job / "csv" / "metrics.csv").exists() for job in jobs))
    threads = Path(f"/proc/{sweep.pid}/task").iterdir()
    children = [int(pid) for t in threads for pid in (t / "children").read_text().split()]
    send(sweep.pid, number)
    sweep.wait(30)
    try:
        wait_until(lambda: not any(map(is_running, children)), 30)
    finally:
        for pid in filter(is_running, children):
            os.kill(pid, signal.SIGKILL)
    assert len(children) >= len(jobs)
    assert all((job / "checkpoints" / "last.ckpt").exists() for job in jobs)


def test_slurm_launcher_composes() -> None:
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        config = hydra.compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.gpus_per_node) == (1, 1)
