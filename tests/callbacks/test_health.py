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
    """Pays what ``reward`` says for an action, and ends after a number of steps.

    So it never ends, or always returns the same; or one action pays.
    """

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def __init__(self, length: int, reward: str = "nothing", continuous: bool = False) -> None:
        self._length, self._reward = length, reward
        if continuous:
            self.action_space = Box(-1, 1, (2,))  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action: Any) -> Any:
        self.t += 1
        reward = -1.0 if self._reward == "nothing" else float(np.sum(action) <= 0)
        return self._observation(), reward, False, self.t >= self._length, {}


gymnasium.register("Dead-v0", Scripted)  # type: ignore[arg-type]


def told(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> list[str]:
    train_tiny(folder, *SIZES, *words)
    return [line for line in capsys.readouterr().out.splitlines() if "looks dead" in line]


@pytest.mark.parametrize(
    ("words", "sign"),
    [
        (["env=test_health:Dead-v0", "+env.options.length=1000000", *LONG], "no episode has ended"),
        (["env=test_health:Dead-v0", "+env.options.length=5"], "episodes return the same"),
        (  # what is seen says nothing of what comes
            ["env=test_health:Dead-v0", "+env.options.length=5", "algo.learning_rate=0.01"],
            "values predict the returns worse",
        ),
        (["env=cartpole", "algo.learning_rate=1e-30"], "policy does not change"),
        (
            ["env=cartpole", "algo=classic", "algo.learning_rate=0.1", "algo.anneal=[]"],
            "always does the same",
        ),
    ],
)
def test_dead_runs_are_told_of_once(
    words: list[str], sign: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = told(capsys, tmp_path / "run", *words)
    assert sum(sign in line for line in lines) == 1, lines
    assert all("docs/faq.md" in line for line in lines)


@pytest.mark.parametrize(
    ("now", "improved", "deviations", "signs"),
    [
        ({"entropy": 0.0, "kl": 0.0}, True, 0, []),  # it has found the best there is
        ({"entropy": 0.0, "kl": 0.0}, False, 0, ["kl", "entropy"]),
        ({"entropy": 0.6, "kl": 0.0}, True, 0, ["kl"]),
        ({"entropy": 0.6, "kl": 0.0}, False, 0, ["kl"]),
        ({"entropy": -4.0, "kl": 0.1}, False, 2, []),
        ({"entropy": -10.0, "kl": 0.1}, False, 2, ["entropy"]),
        ({"entropy": -10.0, "kl": 0.1}, True, 2, []),
        ({"entropy": -10.0, "kl": 0.0}, True, 2, []),
    ],
)
def test_policies_that_always_do_the_same(
    now: dict[str, float], improved: bool, deviations: int, signs: list[str]
) -> None:
    first = {"entropy": 0.69, "episode_return_mean": 10.0}
    metrics = {"episode_return_mean": 20.0 if improved else 10.0, **now}
    row = Row(metrics, first, 0.5, 10, [], 0.0, deviations)
    assert [name for name in ("kl", "entropy") if SIGNS[name].is_there(row)] == signs


@pytest.mark.parametrize(("explained", "warns"), [(-0.1, True), (0.0, False), (math.nan, False)])
def test_values_that_explain_nothing_are_told_of(explained: float, warns: bool) -> None:
    returns = {"episode_return_mean": 1.0}
    row = Row({"explained_variance": explained} | returns, returns, 0.5, 10, [], 0.0, 0)
    assert SIGNS["explained_variance"].is_there(row) is warns


def test_that_no_episode_ends_in_a_short_run_is_no_sign() -> None:
    """Which 50 steps of CarRacing are, or 500 of a game of Atari's."""
    for steps, warns in ((50, False), (1000, False), (1001, True)):
        row = Row({"episodes": 0}, {}, 0.9, steps, [], math.inf, 0)
        assert SIGNS["episodes"].is_there(row) is warns


OWN = ["env=test_health:Dead-v0", "+env.options.reward=first action"]
GOOD = [
    ["env=cartpole"],
    ["env=pendulum"],
    # episodes that are longer than a rollout; learned to the end, so that nothing changes any more
    [*OWN, "+env.options.length=300", "algo.learning_rate=0.01", "algo.anneal=[]"],
    [*OWN, "+env.options.length=20", "algo.learning_rate=0.01", "algo.anneal=[]"],
    [*OWN, "+env.options.length=100", "+env.options.continuous=true", "algo.learning_rate=0.01"],
]


@pytest.mark.parametrize("words", GOOD)
def test_good_runs_are_not(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert not told(capsys, tmp_path / "run", *words, "num_envs=8", "num_steps=64")
