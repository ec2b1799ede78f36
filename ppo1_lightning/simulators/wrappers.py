"""Wrappers of single Gymnasium environments, for `EnvironmentSpec.wrappers`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies.spaces import MASK

log = logging.getLogger("ppo1_lightning")

RAW_REWARD = "ppo1_lightning.raw_reward"
"""In an environment's info: the reward that returns are reported of, where it is another."""

GAME_OVER = "ppo1_lightning.game_over"
"""In an environment's info: whether an episode that ends is the last of its game."""


def refuse_running_statistics(env: gymnasium.Env[Any, Any]) -> None:
    """Refuse wrappers that keep running statistics, which no checkpoint would hold.

    Raises:
        ConfigurationError: it names the wrapper and what does the same as a part of the policy or
            the algorithm, which checkpoints, evaluation and resumed runs have too.
    """
    while isinstance(env, gymnasium.Wrapper):
        for name, value in vars(env).items():
            if "RunningMeanStd" in {base.__name__ for base in type(value).__mro__}:
                raise ConfigurationError(
                    f"env.wrappers: {type(env).__name__} keeps running statistics ({name}) that "
                    "evaluation and a resumed run would lack, expected "
                    "policy.normalize_observations=true or algo.normalize_returns=true"
                )
        env = env.env


class ObserveOnly(gymnasium.ObservationWrapper[NDArray[Any], Any, NDArray[Any]]):
    """Observe some numbers of a vector and no others, such as positions without velocities.

    Args:
        columns: which, in this order.

    Raises:
        ConfigurationError: observations are no vector, or have fewer numbers.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], columns: Sequence[int]) -> None:
        super().__init__(env)
        space, self.columns = env.observation_space, list(columns)
        size = space.shape[0] if isinstance(space, Box) and len(space.shape) == 1 else 0
        if not all(0 <= column < size for column in self.columns) or not self.columns:
            raise ConfigurationError(
                f"ObserveOnly: columns={self.columns} of {space}, expected some from 0 to "
                f"{size - 1} of a vector"
            )
        bounds = (bound[self.columns] for bound in (space.low, space.high))  # type: ignore[attr-defined]
        self.observation_space = Box(*bounds, dtype=space.dtype)  # type: ignore[arg-type]

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        return observation[self.columns]


class SignReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Learn from the sign of rewards; returns are reported of the rewards as they are."""

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = {RAW_REWARD: reward, **info}  # of several of these the innermost
        return observation, float(np.sign(float(reward))), terminated, truncated, info


class ActionMaskFromInfo(gymnasium.Wrapper[dict[str, Any], Any, Any, Any]):
    """Observe ``info["action_mask"]`` too, as ``action_mask`` of a Dict, so that it is obeyed.

    For environments with Discrete actions that say there which of them are allowed, such as
    Gymnasium's Taxi-v4, or with MultiDiscrete ones, by a mask for each of the numbers behind one
    another or in a tuple, or by one of their combinations. What they observe is the Dict's entry
    ``observation``. MultiDiscrete ones are reset once, for their first mask to tell which it is.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        match env.action_space:
            case Discrete(n=n):
                self._shape: tuple[int, ...] = (int(n),)
            case MultiDiscrete(nvec=counts):
                first = self._mask(env.reset()[1])
                is_of_all = first.size == counts.prod()
                self._shape = first.shape if is_of_all else (int(counts.sum()),)
            case space:
                raise TypeError(f"expected (Multi)Discrete actions to mask, found {space}")
        mask = MultiBinary(self._shape)
        self.observation_space = Dict(observation=env.observation_space, action_mask=mask)

    def reset(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**arguments)
        return self._with_mask(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, info

    def _mask(self, info: dict[str, Any]) -> NDArray[Any]:
        if "action_mask" not in info:
            raise ConfigurationError(
                f"{self.env} gives no action_mask in its info, expected one, or no action_mask in "
                "env.observation_keys and no such wrapper"
            )
        mask = info["action_mask"]
        if isinstance(mask, tuple | list):  # as `MultiDiscrete.sample` takes it
            mask = np.concatenate([np.ravel(part) for part in mask]) if mask else mask
        return np.asarray(mask)

    def _with_mask(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        mask = self._mask(info)
        if mask.shape != self._shape:
            raise ConfigurationError(
                f"{self.env} gives an action_mask of the shape {mask.shape} in its info, expected "
                f"{self._shape}, one number for each choice"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ConfigurationError(
                f"{self.env} gives the action_mask {mask} in its info, expected 1 for what is "
                "allowed, else 0"
            )
        return {"observation": observation, "action_mask": mask.astype(np.int8)}


@functools.cache  # once in each process
def tell_unseen_mask(env_id: str) -> None:
    """Say that an environment has a mask in its info that nobody looks at."""
    log.warning(
        "environment %r has an action_mask in its info, which is not looked at; "
        "'env.observation_keys=[observation,action_mask]' obeys it",
        env_id,
    )


def observing_mask(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return an environment that observes an ``action_mask``, that of its info if it has to."""
    space = env.observation_space
    observes_one = isinstance(space, Dict) and MASK in space.spaces
    return env if observes_one else ActionMaskFromInfo(env)
