"""The four budgets: how much is spent, how much is left, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.rollouts.budget import Budget, Counters

HALF = Counters(iterations=5, env_steps=500, transitions=490, episodes=20, seconds=3.0)
EVERY = [
    {"total_steps": 1000},
    {"total_episodes": 40},
    {"total_iterations": 10},
    {"total_seconds": 6.0},
]


@pytest.mark.parametrize("budget", EVERY, ids=str)
def test_fraction_spent(budget: dict[str, Any]):
    assert Budget(**budget).fraction_spent(Counters()) == 0
    assert Budget(**budget).fraction_spent(HALF) == 0.5
    beyond = Counters(iterations=11, env_steps=1100, episodes=41, seconds=7.0)
    assert Budget(**budget).fraction_spent(beyond) == 1


@pytest.mark.parametrize(
    ("budget", "whole", "left"),
    [
        ({"total_steps": 1000}, 10, 5),
        ({"total_steps": 1001}, 11, 6),  # the last iteration may go beyond the budget
        ({"total_steps": 501}, 6, 1),
        ({"total_steps": 500}, 5, 0),
        ({"total_steps": 1}, 1, 0),
        ({"total_iterations": 10}, 10, 5),
        ({"total_iterations": 4}, 4, 0),
        ({"total_episodes": 20}, None, 0),
        ({"total_seconds": 3.0}, None, 0),
    ],
)
def test_iterations(budget: dict[str, Any], whole: int | None, left: int):
    assert Budget(**budget).iterations(100) == whole
    assert Budget(**budget).iterations_left(HALF, 100) == left


@pytest.mark.parametrize("budget", [{"total_episodes": 21}, {"total_seconds": 3.1}], ids=str)
def test_only_the_run_can_tell(budget: dict[str, Any]):
    left = Budget(**budget).iterations_left(HALF, 100)
    assert left > 10**15
    assert HALF.iterations + left < 2**63  # a length that Python accepts


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "exactly one budget of total_steps.*found none"),
        (
            {"total_steps": 100, "total_seconds": 5},
            "found total_steps=100, total_seconds=5; set total_steps=null",
        ),
        ({"total_iterations": 1, "total_episodes": 5}, "total_episodes=5, total_iterations=1$"),
        ({"total_steps": 0}, "total_steps=0 is out of range, expected at least 1"),
        ({"total_steps": -5}, "total_steps=-5 is out of range"),
        ({"total_steps": 10.5}, "total_steps=10.5 is not a whole number"),
        ({"total_steps": "1M"}, "total_steps='1M' is not a whole number"),
        ({"total_iterations": True}, "total_iterations=True is not a whole number"),
        ({"total_seconds": 0}, "total_seconds=0 is out of range, expected a number above 0"),
        ({"total_seconds": float("nan")}, "total_seconds=nan is not a finite number"),
        ({"total_seconds": float("inf")}, "total_seconds=inf is not a finite number"),
    ],
)
def test_errors_are_one_line(budget: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message) as error:
        Budget(**budget)
    assert "\n" not in str(error.value)


def test_scientific_notation():
    budget = Budget(total_steps=1e6)  # type: ignore[arg-type]
    assert budget.total_steps == 1_000_000
    assert type(budget.total_steps) is int
    assert str(budget) == "1,000,000 steps"


def test_counters_survive_a_checkpoint():
    assert Counters(**HALF.state_dict()) == HALF  # type: ignore[arg-type]
    assert {type(value) for value in HALF.state_dict().values()} <= {int, float}
