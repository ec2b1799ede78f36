"""Every config in conf/env composes, instantiates and learns for two tiny iterations."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from ppo1_lightning import cli, train

# What to run where the config leaves the id to the user.
ANY_ID = {
    "atari": "Assault-v5",
    "envpool": "CartPole-v0",
    "gymnasium": "Acrobot-v1",
    "mujoco": "Pusher-v4",
}
NAMES = sorted(p.stem for p in (cli.config_directory() / "env").glob("*.yaml"))
TINY = [
    *("num_envs=2", "num_steps=8", "num_workers=null", "total_steps=null", "total_iterations=2"),
    *("algo.minibatch_size=8", "algo.update_epochs=2", "trainer.accelerator=cpu"),
]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "default"])
def test_two_iterations(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"env={name}", *([f"env.id={ANY_ID[name]}"] if name in ANY_ID else [])]
    monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words, *TINY, "hydra.run.dir=run"])
    train.main()
    with Path("run/csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["env_steps"] for row in rows] == ["16", "32"]
    assert all(float(row["entropy"]) > -50 for row in rows)  # numbers, not NaN
    assert Path("run/checkpoints/last.ckpt").is_file()
