"""Runs that are dead by construction are told of, each sign once; good ones are not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from tiny_runs import train_tiny

from ppo1_lightning.callbacks.health import SIGNS, Row

SIZES = ["num_envs=4", "num_steps=16", "algo.minibatch_size=64", "total_iterations=40"]
LONG = ["num_steps=64", "algo.minibatch_size=256"]


class Scripted(gymnasium.Env[Any, Any]):
    """Never ends, or always returns the same."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def __init__(self, length: int) -> None:
        self._length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._observation(), -1.0, False, self.t >= self._length, {}


gymnasium.register("Dead-v0", Scripted)  # type: ignore[arg-type]


def told(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> list[str]:
    train_tiny(folder, *SIZES, *words)
    return [line for line in capsys.readouterr().out.splitlines() if "looks dead" in line]


@pytest.mark.parametrize(
    ("words", "sign"),
    [
        (["env=test_health:Dead-v0", "+env.options.length=1000000", *LONG], "no episode has ended"),
        (["env=test_health:Dead-v0", "+env.options.length=5"], "episodes return the same"),
        (["env=cartpole", "algo.learning_rate=1e-30"], "policy does not change"),
        (["env=cartpole", "algo.learning_rate=0.1", "algo.anneal=[]"], "always does the same"),
    ],
)
def test_dead_runs_are_told_of_once(
    words: list[str], sign: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = told(capsys, tmp_path / "run", *words)
    assert sum(sign in line for line in lines) == 1, lines
    assert all("docs/faq.md" in line for line in lines)


@pytest.mark.parametrize(("explained", "warns"), [(-0.1, True), (0.0, False), (math.nan, False)])
def test_values_that_explain_nothing_are_told_of(explained: float, warns: bool) -> None:
    row = Row({"explained_variance": explained}, {}, 0.5, 10, [], 0.0, True)
    assert SIGNS["explained_variance"].is_there(row) is warns


def test_that_no_episode_ends_in_a_short_run_is_no_sign() -> None:
    """Which 50 steps of CarRacing are, or 500 of a game of Atari's."""
    for steps, warns in ((50, False), (1000, False), (1001, True)):
        row = Row({"episodes": 0}, {}, 0.9, steps, [], math.inf, True)
        assert SIGNS["episodes"].is_there(row) is warns


@pytest.mark.parametrize("words", [["env=cartpole"], ["env=pendulum"]])
def test_good_runs_are_not(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert not told(capsys, tmp_path / "run", *words, "num_envs=8", "num_steps=64")
