"""Atari of ``ale_py`` with EnvPool's rules, where Gymnasium's own wrappers have others."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
from numpy.typing import NDArray

from ppo1_lightning.simulators.wrappers import GAME_OVER

NOOP = 0

Frame = NDArray[Any]


class ContinuedGame(gymnasium.Wrapper[Frame, int, Frame, int]):
    """Goes on with a game after a lost life, and starts every episode as EnvPool's games do.

    It belongs below ``gymnasium.wrappers.AtariPreprocessing(terminal_on_life_loss=True)``, which
    would begin a new game after each life, and instead of its ``noop_max``: here FIRE, where a game
    has that button, is pressed after them. What these frames earn is nobody's.

    Args:
        env: one game, whose step is one frame.
        noop_max: most frames between the start of an episode and its first action, at least 1.
    """

    def __init__(self, env: gymnasium.Env[Frame, int], noop_max: int = 30) -> None:
        super().__init__(env)
        buttons: list[str] = env.get_wrapper_attr("get_action_meanings")()
        self._fire = [buttons.index("FIRE")] if "FIRE" in buttons else []
        self._noop_max, self._is_over = noop_max, True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        if self._is_over or seed is not None:
            self.env.reset(seed=seed, options=options)
        noops = int(self.np_random.integers(1, self._noop_max + 1)) - len(self._fire)
        return [self._passed(action) for action in [NOOP] * noops + self._fire][-1]

    def _passed(self, action: int) -> tuple[Frame, dict[str, Any]]:
        observation, _, _, _, info = self.step(action)
        if self._is_over:
            observation, info = self.env.reset()
            self._is_over = False
        return observation, info

    def step(self, action: int) -> tuple[Frame, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._is_over = terminated or truncated
        return observation, reward, terminated, truncated, {**info, GAME_OVER: self._is_over}
