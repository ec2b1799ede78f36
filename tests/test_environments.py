"""Every config of ``conf/env`` runs, from its words on the command line to its metrics."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
from tiny_runs import ANY_ID

from ppo1_lightning import __main__ as command_line
from ppo1_lightning.commands import config as cli

pytestmark = pytest.mark.heavy

NAMES = sorted(file.stem for file in (cli.config_directory() / "env").glob("*.yaml"))
TINY = ["debug=default", "total_iterations=2", "num_steps=16", "logger=csv"]


EACH_TIME = ("gymnasium", "halfcheetah", "pong")
"""One of each kind; the others before a release."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EACH_TIME else pytest.mark.slow)
        for name in NAMES
        if name != "default"
    ],
)
def test_two_iterations(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"env={name}", *TINY, f"hydra.run.dir={tmp_path}", "trainer.accelerator=cpu"]
    if name in ANY_ID:
        words.append(f"env.id={ANY_ID[name]}")
    if name == "atari_gymnasium":
        pytest.importorskip("ale_py")
        pytest.importorskip("cv2")
    monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words])
    command_line.main()
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["env_steps"] for row in rows] == ["32", "64"]
    may_be_nan = {"episode_return_mean", "episode_length_mean", "explained_variance"}
    for row in rows:
        assert all(math.isfinite(float(row[key])) for key in row.keys() - may_be_nan)
