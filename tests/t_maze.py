"""A T-maze (Bakker 2001): the first observation says where the goal is, the last one asks."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray


class TMaze(gymnasium.Env[NDArray[np.float32], int]):
    """A corridor that is walked along; only the turn at its end is the agent's choice.

    Observations are the sign (-1 or 1, at the start only) and whether this is the junction. An
    episode's return is 1 for the right turn and 0 for the other: 0.5 by chance.
    """

    observation_space = Box(-1, 1, (2,))
    action_space: Any = Discrete(2)

    def __init__(self, corridor: int = 10) -> None:
        self.corridor = corridor

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.goal, self.place = int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.place == self.corridor:
            return self._observe(), float(action == self.goal), True, False, {}
        self.place += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> NDArray[np.float32]:
        sign = 2 * self.goal - 1 if self.place == 0 else 0
        return np.array([sign, self.place == self.corridor], np.float32)


class MaskedTMaze(gymnasium.ObservationWrapper[Any, Any, Any]):
    """The same with a third turn, which leads nowhere and is forbidden."""

    def __init__(self, corridor: int = 10) -> None:
        super().__init__(TMaze(corridor))
        self.observation_space = Dict(
            seen=self.env.observation_space, action_mask=Box(0, 1, (3,), np.int8)
        )
        self.action_space = Discrete(3)

    def observation(self, observation: Any) -> Any:
        return {"seen": observation, "action_mask": np.array([1, 1, 0], np.int8)}


gymnasium.register("TMaze-v0", entry_point="t_maze:TMaze")
gymnasium.register("MaskedTMaze-v0", entry_point="t_maze:MaskedTMaze")
