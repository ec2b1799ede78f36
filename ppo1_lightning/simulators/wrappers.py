"""Wrappers of single Gymnasium environments, for `EnvironmentSpec.wrappers`."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
from gymnasium.spaces import Dict, Discrete, MultiBinary

from ppo1_lightning.errors import ConfigurationError


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


class ActionMaskFromInfo(gymnasium.Wrapper[dict[str, Any], Any, Any, Any]):
    """Observe ``info["action_mask"]`` too, as ``action_mask`` of a Dict, so that it is obeyed.

    For environments with Discrete actions that say there which of them are allowed, such as
    Gymnasium's Taxi-v4. What they observe is the Dict's entry ``observation``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        if not isinstance(env.action_space, Discrete):
            raise TypeError(f"expected Discrete actions to mask, found {env.action_space}")
        mask = MultiBinary(int(env.action_space.n))
        self.observation_space = Dict(observation=env.observation_space, action_mask=mask)

    def reset(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**arguments)
        return self._with_mask(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, info

    def _with_mask(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        return {"observation": observation, "action_mask": info["action_mask"]}
