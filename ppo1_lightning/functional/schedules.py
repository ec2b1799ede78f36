"""Schedules: the multiplier of learning rate and clip range as a function of the budget spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda fraction_spent: 1.0,
    "linear": lambda fraction_spent: max(1.0 - fraction_spent, 0.0),
}
"""From the fraction of the budget spent, in [0, 1], to ppo1's ``lrmult``."""
