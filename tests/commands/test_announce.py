"""What is said of what the policy sees, before a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from ppo1_lightning.commands.announce import interface
from ppo1_lightning.simulators import EnvironmentSpec
from ppo1_lightning.simulators.actions import ActionAdapter
from ppo1_lightning.simulators.observations import ObservationAdapter

PICTURE = (24, 30, 3)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (Box(-np.inf, np.inf, PICTURE), "pictures of floats without bounds"),
        (Box(0, 1e9, PICTURE), "pictures of floats without bounds"),
        (Box(0, 255, PICTURE), None),  # scaled by its bounds
        (Box(-1, 1, PICTURE), None),
        (Box(0, 255, PICTURE, np.uint8), None),
        (Box(0, 255, (210, 160, 3), np.uint8), "pictures of 210 x 160 x 3 as they are"),
    ],
)
def test_pictures_that_may_surprise_are_told(
    space: Any, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    spec = EnvironmentSpec("Seen-v0")
    interface(ObservationAdapter(spec, space), ActionAdapter(spec, Discrete(2), 1), None)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None)
    assert told is None or told in messages[0]
