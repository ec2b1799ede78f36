"""What lies outside of an environment's own bounds is told once."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box

from ppo1_lightning.simulators.bounds import Bounds

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
