"""How a policy acts in a rollout: as the module it is, or as graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppo1_lightning.fast.compiler import Run
from ppo1_lightning.fast.graphs import PolicyGraph, separate_parameters
from ppo1_lightning.functional.distributions import Distribution

VALUE_BATCH = 4096
"""Rows that the value function evaluates at once, where it is a network of its own."""

WHOLE = (slice(None),)
"""All environments as one pool."""

Outputs = tuple[Tensor, Tensor, Tensor]
"""Actions ``[N, ...]``, distribution parameters ``[N, P]`` and values ``[N]``."""

RolloutOutputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Observations ``[T + 1, N, ...]``, actions, parameters ``[T, N, ...]``, values ``[T + 1, N]``."""


def choose_actions(
    policy: Callable[..., Any], distribution: Distribution, observations: Tensor, noise: Tensor
) -> Outputs:
    """Return actions ``[N, ...]``, distribution parameters ``[N, P]`` and values ``[N]``."""
    parameters, values, _ = policy(observations, None)
    parameters = parameters.float()
    return distribution.sample(parameters, noise), parameters, values.float()


class ModuleActing:
    """One rollout of a policy as the module it is, on its own device; see `rollout.Acting`.

    Each observation goes to the device once, when it is acted on, and stays there for the update.

    Args:
        act: from ``[n, *observation_shape]`` and noise ``[n, noise_size]`` to what
            `choose_actions` returns, all on the device.
        observations: ``[T + 1, N, *observation_shape]``, of which a step reads its own.
        noise: ``[T, N, noise_size]``.
        device: of the policy.
        pools: the n environments that it acts in at once.
    """

    def __init__(
        self,
        act: Callable[[Tensor, Tensor], Outputs],
        observations: Tensor,
        noise: Tensor,
        device: torch.device,
        pools: Sequence[slice] = WHOLE,
    ) -> None:
        self._act, self._arriving, self._noise = act, observations, noise.to(device)
        self._pools = pools
        here = observations.device == device
        self._observations = observations if here else torch.empty_like(observations, device=device)
        self._acted: list[Outputs] = []

    def act(self, step: int, pool: int = 0) -> NDArray[Any]:
        """Return the actions ``[n, *action_shape]`` of a step."""
        self._acted.append(self._chosen(step, pool))
        return self._acted[-1][0].cpu().numpy()  # the one wait of a step

    def outputs(self) -> RolloutOutputs:
        """Return what the rollout is made of, on the device."""
        chosen = [*self._acted, *(self._chosen(-1, pool) for pool in range(len(self._pools)))]
        steps = (len(self._arriving), len(self._pools))
        actions, parameters, values = (
            torch.stack(output).unflatten(0, steps).flatten(1, 2)
            for output in zip(*chosen, strict=True)
        )
        return self._observations, actions[:-1], parameters[:-1], values

    def _chosen(self, step: int, pool: int) -> Outputs:
        envs = self._pools[pool]
        observation = self._observations[step, envs]
        if self._observations is not self._arriving:
            observation.copy_(self._arriving[step, envs], non_blocking=True)
        return self._act(observation, self._noise[step, envs])


def acting_on_accelerator(
    policy: nn.Module, distribution: Distribution, device: torch.device
) -> Callable[..., ModuleActing]:
    """Return how a policy acts on an accelerator: as one launch a step (a CUDA graph).

    Its authors have run it on the CPU only, where it is compiled and not captured.
    """
    choose = torch.compile(choose_actions, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def act(observations: Tensor, noise: Tensor) -> Outputs:
        chosen = choose(policy, distribution, observations, noise)
        actions, parameters, values = (output.clone() for output in chosen)  # the next overwrites
        return actions, parameters, values

    return lambda observations, noise, pools=WHOLE: ModuleActing(
        act, observations, noise, device, pools
    )


class ActingGraphs:
    """A policy's `choose_actions` as graphs, for rollouts of one size on the CPU.

    A value function that shares nothing with the choice of actions is left out of it, and is
    evaluated for all steps at once, which takes a fraction of the time.

    Args:
        observations: ``[T + 1, N, *observation_shape]`` of a rollout.
        noise: ``[T, N, noise_size]``.
        pools: the environments that it acts in at once.
        compiled: see `graphs.Graph`.

    Raises:
        AssertionError: the graphs do not compute what the policy does.
    """

    def __init__(
        self,
        policy: nn.Module,
        distribution: Distribution,
        observations: Tensor,
        noise: Tensor,
        pools: Sequence[slice] = WHOLE,
        *,
        compiled: bool,
    ) -> None:
        apart = separate_parameters(policy, observations[0]) is not None

        def act(policy: Callable[..., Any], *row: Tensor) -> None:
            observations, noise, *results = row
            chosen = choose_actions(policy, distribution, observations, noise)
            for result, its_content in zip(results, chosen, strict=False):
                result.copy_(its_content)

        def value(policy: Callable[..., Any], observations: Tensor, values: Tensor) -> None:
            values.copy_(policy(observations, None)[1])

        self._act = PolicyGraph(policy, act, compiled=compiled)
        self._value = PolicyGraph(policy, value, compiled=compiled) if apart else None
        with torch.inference_mode():
            self._example = choose_actions(policy, distribution, observations[0], noise[0])
        acting = self(observations, noise, pools)
        assert acting is not None
        with torch.inference_mode():
            for pool in range(len(pools)):
                acting.act(0, pool)
        _, _, parameters, values = acting.outputs()
        torch.testing.assert_close((parameters[0], values[0]), self._example[1:])

    def __call__(
        self, observations: Tensor, noise: Tensor, pools: Sequence[slice] = WHOLE
    ) -> GraphActing | None:
        """Return the graphs for a rollout, None where it is not laid out as the first one."""
        actions, parameters, _ = (
            torch.empty(len(noise), *one.shape, dtype=one.dtype) for one in self._example
        )
        values = torch.empty(observations.shape[:2])
        steps: list[Run | None]
        if self._value is None:
            step = observations, noise, actions, parameters, values
            nowhere = torch.empty_like(actions[:1]), torch.empty_like(parameters[:1])
            last_step = observations[-1:], noise[-1:], *nowhere, values[-1:]
            steps, last = self._bind_step(step, pools), self._bind_step(last_step, pools)
        else:
            steps = self._bind_step((observations, noise, actions, parameters), pools)
            batches = zip(_batches(observations), _batches(values), strict=True)
            last = [
                self._value.bind(batch[None], its_values[None]) for batch, its_values in batches
            ]
        runs, last_runs = _all_or_none(steps), _all_or_none(last)
        if runs is None or last_runs is None:
            return None
        outputs = observations, actions, parameters, values
        return GraphActing(runs, last_runs, outputs, pools)

    def _bind_step(self, tensors: Sequence[Tensor], pools: Sequence[slice]) -> list[Run | None]:
        return [self._act.bind(*(tensor[:, envs] for tensor in tensors)) for envs in pools]


class GraphActing:
    """One rollout of a policy as graphs that write into ``outputs``; see `rollout.Acting`.

    Args:
        steps: for the rows of the steps, one for each pool.
        last: whatever completes the outputs, each for one row.
        pools: see `ActingGraphs`.
    """

    def __init__(
        self,
        steps: Sequence[Run],
        last: Sequence[Run],
        outputs: RolloutOutputs,
        pools: Sequence[slice],
    ) -> None:
        self._steps, self._last, self._outputs = steps, last, outputs
        self._actions = [outputs[1][:, envs].numpy() for envs in pools]

    def act(self, step: int, pool: int = 0) -> NDArray[Any]:
        """Return the actions ``[n, *action_shape]`` of a step."""
        self._steps[pool](step, step + 1)
        return self._actions[pool][step]

    def outputs(self) -> RolloutOutputs:
        """Return what the rollout is made of."""
        with torch.inference_mode():
            for run in self._last:
                run(0, 1)
        return self._outputs


def _all_or_none(runs: Sequence[Run | None]) -> list[Run] | None:
    bound = [run for run in runs if run is not None]
    return bound if len(bound) == len(runs) else None


def _batches(rows: Tensor) -> list[Tensor]:
    """Return batches of one size that cover ``[T + 1, N, ...]``; the last one overlaps."""
    flat = rows.flatten(0, 1)
    size = min(VALUE_BATCH, len(flat))
    starts = [*range(0, len(flat) - size, size), len(flat) - size]
    return [flat[start : start + size] for start in starts]
