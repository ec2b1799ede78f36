"""What lies outside of an environment's own bounds is told once."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box

from ppo1_lightning.errors import SimulationError
from ppo1_lightning.simulators.bounds import Bounds, check_finite

LOW, HIGH = np.array([-1, -np.inf], np.float32), np.array([1, np.inf], np.float32)


def observations(*values: tuple[float, float]) -> np.ndarray:
    """Return ``[T, 2, 2]``, the second environment's as given."""
    rows = np.zeros((len(values), 2, 2), np.float32)
    rows[:, 1] = values
    return rows


def test_told_once_with_environment_and_value(caplog: pytest.LogCaptureFixture) -> None:
    bounds = Bounds("Mine-v0", Box(LOW, HIGH))
    bounds.tell(observations((1, 1e30), (-1.0001, -1e30)))  # at them, and rounded
    assert not caplog.messages
    for _ in range(2):
        bounds.tell(observations((0, 0), (-5, 0)))
    (message,) = caplog.messages
    assert message.startswith("environment 1 of 'Mine-v0' returned the observation -5, outside")


@pytest.mark.parametrize("space", [Box(-np.inf, np.inf, (2,)), Box(-3e38, 3e38, (2,))])
def test_nothing_is_outside_of_everything(space: Box, caplog: pytest.LogCaptureFixture) -> None:
    Bounds("Mine-v0", space).tell(observations((3e38, -3e38)))
    assert not caplog.messages


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e19, -(2.0**63)])
def test_numbers_that_float32_does_not_square_are_refused(value: float) -> None:
    for dtype in (np.float32, np.float64):
        values = np.zeros((2, 3, 1), dtype)
        check_finite("Mine-v0", "reward", values)
        values[1, 2] = value
        with pytest.raises(SimulationError, match="environment 2 of 'Mine-v0' returned the reward"):
            check_finite("Mine-v0", "reward", values)
    check_finite("Mine-v0", "observation", np.zeros((2, 3, 0), np.float32))
    check_finite("Mine-v0", "observation", np.full((2, 3, 1), 255, np.uint8))
