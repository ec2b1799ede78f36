"""It learns: short runs of the presets as users start them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ppo1_lightning import __main__ as command_line

Run = Callable[..., list[tuple[int, float]]]


@pytest.fixture
def learning_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in an empty folder; return (env_steps, mean return) of every row."""

    def run(*words: str) -> list[tuple[int, float]]:
        monkeypatch.chdir(tmp_path)
        fixed = ["trainer.accelerator=cpu", "hydra.run.dir=run"]
        monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words, *fixed])
        command_line.main()
        with Path("run/csv/metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [(int(row["env_steps"]), float(row["episode_return_mean"])) for row in rows]

    return run


SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *SLOW])
def test_cartpole_is_solved(learning_curve: Run, seed: int) -> None:
    curve = learning_curve("env=cartpole", f"seed={seed}")
    assert curve[-1][0] <= 100_352  # 100k steps, rounded up to whole iterations
    assert curve[-1][1] >= 475


@pytest.mark.slow
def test_inverted_pendulum_improves(learning_curve: Run) -> None:
    curve = learning_curve("env=invertedpendulum", "total_steps=60_000")
    assert curve[0][1] < 50
    assert curve[-1][1] > 300
