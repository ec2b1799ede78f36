"""A simulator whose observations are normalised step by step, by what all ranks have seen so far.

Baselines' ``common/vec_env/vec_normalize.py``. Its rewards are `RewardNormalizer`'s, who can wait
until a rollout is complete.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppo1_lightning.distributed import world_size
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies.normalization import StepNormalizer
from ppo1_lightning.simulators.base import RawStep, Simulator, Step


class NormalizedSimulator(Simulator):
    """Shows a training policy normalised observations, and counts them.

    Args:
        simulator: of this rank's environments.
        normalizer: the statistics, alike on all ranks.
        copies: how many of the environments, the last ones, are other ranks' and not counted.
        num_steps: of a rollout. The ranks meet in each of them: where one fails, it answers the
            others until their rollouts end.
        device: on which ranks exchange tensors.

    Raises:
        ConfigurationError: environments in several pools, which are not stepped together.
    """

    def __init__(
        self,
        simulator: Simulator,
        normalizer: StepNormalizer,
        *,
        copies: int = 0,
        num_steps: int,
        device: torch.device,
    ) -> None:
        if len(simulator.pools) > 1:
            raise ConfigurationError(
                f"env.num_pools={len(simulator.pools)} with algo.normalize_observations=true, "
                "which counts a step's observations together; expected env.num_pools=1"
            )
        self._simulator, self._normalizer = simulator, normalizer
        self._num_steps, self._device = num_steps, device
        self._is_copy = np.arange(simulator.num_envs) >= simulator.num_envs - copies
        self._raw: list[NDArray[Any]] = []  # observations since the last `settle`
        self.num_envs, self.pools = simulator.num_envs, simulator.pools
        self.observation_space = simulator.observation_space
        self.action_space = simulator.action_space

    def reset(self) -> NDArray[Any]:
        self._raw.clear()
        with self._answering(1 + self._num_steps):
            observation = self._simulator.reset()
        self._observe(observation, np.zeros(self.num_envs, np.bool_))
        return observation

    def send(self, action: NDArray[Any], pool: int) -> None:
        self._simulator.send(action, pool)

    def receive(self, observation: NDArray[Any], pool: int) -> RawStep:
        step = self._simulator.receive(observation, pool)
        self._raw.append(observation.copy())
        self._observe(observation, self._simulator.ended(step))
        return step

    def ended(self, step: RawStep) -> NDArray[np.bool_]:
        return self._simulator.ended(step)

    def settle(self, steps: Sequence[RawStep], observations: NDArray[Any]) -> Step:
        raw = np.stack(self._raw)
        self._raw.clear()
        return self._simulator.settle(steps, raw)._replace(observation=observations)

    def check_observations(self, observations: NDArray[Any]) -> None:
        if self._raw:  # what is normalised says less
            self._simulator.check_observations(np.stack(self._raw))

    @contextmanager
    def stepping(self) -> Generator[None]:
        with self._answering(self._num_steps), self._simulator.stepping():
            yield

    def wrapper_states(self) -> list[dict[str, Any]] | None:
        return self._simulator.wrapper_states()

    def render(self) -> NDArray[np.uint8]:
        return self._simulator.render()

    def close(self) -> None:
        self._simulator.close()

    def _observe(self, observation: NDArray[Any], final: NDArray[np.bool_]) -> None:
        self._normalizer.observe(observation, final | self._is_copy, self._device)

    @contextmanager
    def _answering(self, times: int) -> Generator[None]:
        """Where this rank fails, count nothing as often as the others still count with it."""
        try:
            yield
        except Exception:
            if world_size() > 1:
                nothing = np.zeros((self.num_envs, *self.row_space.shape), self.row_space.dtype)
                for _ in range(times - len(self._raw)):
                    self._observe(nothing, np.ones(self.num_envs, np.bool_))
            raise
