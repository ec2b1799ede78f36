"""How a policy acts in a rollout: the interface, and the policy as the module it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo1_lightning.policies.base import ActionOutputs

RolloutOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Observations ``[T + 1, N, ...]``, actions and distribution parameters ``[T, N, ...]``, values
``[T + 1, N]`` and states before each row ``[T + 1, N, S]``."""

WHOLE = (slice(None),)
"""All environments as one pool."""


class Acting(Protocol):
    """How a policy acts throughout one rollout."""

    def act(self, step: int, pool: int) -> NDArray[Any]:
        """Return the actions ``[n, *action_shape]`` of a pool, once its observations are there.

        It is called under `torch.inference_mode`, for all pools of a step in turn.
        """
        ...

    def outputs(self) -> RolloutOutputs:
        """Return what the rollout is made of, where the policy is, once all observations are
        there."""
        ...


class ActingFactory(Protocol):
    """Makes an `Acting` for each rollout that is laid out like the first one."""

    def __call__(
        self,
        observations: Tensor,
        noise: Tensor,
        pools: Sequence[slice],
        state: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Acting:
        """Return how the policy acts in a rollout, see `ModuleActing` for the arguments."""
        ...

    def outdated(self) -> str | None:
        """Return the name of something that it goes by as it was before, None where it does not."""
        ...


class ModuleActing:
    """One rollout of a policy as the module it is, on its own device; see `Acting`.

    Each observation goes to the device once, when it is acted on, and stays there for the update.

    Args:
        act: from ``[n, *observation_shape]`` and noise ``[n, noise_size]``, and from ``state [n,
            S]`` and ``starts [n]`` where there is any, to what `choose_actions` returns, all on the
            device.
        observations: ``[T + 1, N, *observation_shape]``, of which a step reads its own.
        noise: ``[T, N, noise_size]``.
        device: of the policy.
        pools: the n environments that it acts in at once.
        state: ``[N, S]`` before the first step; None: the policy has no memory.
        starts: ``[T + 1, N]`` bool, of which a step reads its own.
    """

    def __init__(
        self,
        act: Callable[..., ActionOutputs],
        observations: Tensor,
        noise: Tensor,
        device: torch.device,
        pools: Sequence[slice] = WHOLE,
        state: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> None:
        self._act, self._arriving, self._noise = act, observations, noise.to(device)
        self._pools, self._starts = pools, starts
        here = observations.device == device
        self._observations = observations if here else torch.empty_like(observations, device=device)
        first = torch.zeros(observations.shape[1], 0) if state is None else state
        self._states = [[first[envs].to(device)] for envs in pools]
        self._acted: list[ActionOutputs] = []

    def act(self, step: int, pool: int = 0) -> NDArray[Any]:
        """Return the actions ``[n, *action_shape]`` of a step."""
        self._acted.append(self._chosen(step, pool))
        return self._acted[-1][0].cpu().numpy()  # the one wait of a step

    def outputs(self) -> RolloutOutputs:
        """Return what the rollout is made of, on the device."""
        chosen = [*self._acted, *(self._chosen(-1, pool) for pool in range(len(self._pools)))]
        steps = (len(self._arriving), len(self._pools))
        actions, dist_params, values = (
            torch.stack(output).unflatten(0, steps).flatten(1, 2)
            for output in list(zip(*chosen, strict=True))[:3]
        )
        states = torch.cat([torch.stack(before[: steps[0]]) for before in self._states], 1)
        return self._observations, actions[:-1], dist_params[:-1], values, states

    def _chosen(self, step: int, pool: int) -> ActionOutputs:
        envs, states = self._pools[pool], self._states[pool]
        observation = self._observations[step, envs]
        if self._observations is not self._arriving:
            observation.copy_(self._arriving[step, envs], non_blocking=True)
        memory: tuple[Tensor, ...] = ()
        if self._starts is not None and states[-1].shape[-1]:
            memory = states[-1], self._starts[step, envs].to(observation.device)
        chosen = self._act(observation, self._noise[step, envs], *memory)
        states.append(chosen[3] if memory else states[-1])
        return chosen
