# pyright: reportMissingImports=false
"""EnvPool's environments as Stable-Baselines3 takes them, for `benchmarks.peers.zoo`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import envpool
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


class EnvPoolVecEnv(VecEnv):
    """Vectors of a Dict are joined in one, EnvPool's rows of a reset are asked for at once.

    Leaves named in ``without`` are not shown.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, without: Sequence[str] = ()) -> None:
        self.envs: Any = envpool.make_gymnasium(env_id, num_envs=num_envs, seed=seed)
        space = self.envs.observation_space
        self.leaves = [name for name in getattr(space, "spaces", {}) if name not in without]
        first = self._joined(self.envs.reset()[0])
        as_it_is = len(first.shape) == 4 or isinstance(space, spaces.Discrete)
        seen = space if as_it_is else spaces.Box(-np.inf, np.inf, first.shape[1:], np.float32)
        super().__init__(num_envs, seen, self.envs.action_space)

    def _joined(self, observations: Any) -> np.ndarray:
        if not self.leaves:
            vectors = observations.ndim == 2
            return observations.astype(np.float32) if vectors else observations
        parts = (np.asarray(observations[name]) for name in self.leaves)
        rows = [part.reshape(len(part), -1).astype(np.float32) for part in parts]
        return np.concatenate(rows, axis=1)

    def reset(self) -> np.ndarray:
        return self._joined(self.envs.reset()[0])

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        outcome = self.envs.step(self.actions.astype(self.action_space.dtype))
        observations, rewards, terminated, truncated, _ = outcome
        seen, ended = self._joined(observations), terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.any():
            (rows,) = ended.nonzero()
            for row in rows:
                cut = bool(truncated[row] and not terminated[row])
                infos[row] = {"terminal_observation": seen[row], "TimeLimit.truncated": cut}
            seen = seen.copy()
            seen[rows] = self._joined(self.envs.reset(rows.astype(np.int32))[0])
        return seen, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs  # SB3 asks for render_mode

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs
