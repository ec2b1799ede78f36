"""An environment of one's own, registered with Gymnasium where this module is imported.

python -m ppo1_lightning env=gymnasium env.id=corridor:Corridor-v0 total_steps=20_000
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray


class Corridor(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Walk to the right end of a corridor: each step costs, the end pays.

    Args:
        length: steps from the left end to the right one.
        render_mode: ``"rgb_array"`` for pictures, as ``python -m ppo1_lightning record`` asks for.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's way)

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        self.length, self.position, self.render_mode = length, 0, render_mode
        self.observation_space = Box(0, 1, (1,), np.float32)
        self.action_space = Discrete(2)  # left, right

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start somewhere in the left half."""
        super().reset(seed=seed)
        self.position = int(self.np_random.integers(self.length // 2))
        return self._observation(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Go one step."""
        self.position = max(0, self.position + (1 if action == 1 else -1))
        done = self.position >= self.length
        return self._observation(), 1.0 if done else -0.05, done, False, {}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Draw the corridor, white where the walker is."""
        cells = np.full((1, self.length + 1, 3), (40, 60, 90), np.uint8)
        cells[0, self.position] = 255
        return cells.repeat(32, 0).repeat(32, 1)

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self.position / self.length], np.float32)


gymnasium.register("Corridor-v0", entry_point="corridor:Corridor", max_episode_steps=100)
