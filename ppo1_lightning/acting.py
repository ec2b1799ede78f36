"""How a policy acts in a rollout: as the module it is, or as graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppo1_lightning.compiler import Run
from ppo1_lightning.distributions import Distribution
from ppo1_lightning.graphs import PolicyGraph, separate_parameters

VALUE_BATCH = 4096
"""Rows that the value function evaluates at once, where it is a network of its own."""

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
        act: from ``[N, *observation_shape]`` and noise ``[N, noise_size]`` to what
            `choose_actions` returns, all on the device.
        observations: ``[T + 1, N, *observation_shape]``, of which a step reads its own.
        noise: ``[T, N, noise_size]``.
        device: of the policy.
    """

    def __init__(
        self,
        act: Callable[[Tensor, Tensor], Outputs],
        observations: Tensor,
        noise: Tensor,
        device: torch.device,
    ) -> None:
        self._act, self._arriving, self._noise = act, observations, noise.to(device)
        here = observations.device == device
        self._observations = observations if here else torch.empty_like(observations, device=device)
        self._acted: list[Outputs] = []

    def act(self, step: int) -> NDArray[Any]:
        """Return the actions ``[N, *action_shape]`` of a step."""
        self._acted.append(self._act(self._observed(step), self._noise[step]))
        return self._acted[-1][0].cpu().numpy()  # the one wait of a step

    def outputs(self) -> RolloutOutputs:
        """Return what the rollout is made of, on the device."""
        actions, parameters, values = map(torch.stack, zip(*self._acted, strict=True))
        _, _, last = self._act(self._observed(-1), self._noise[-1])
        return self._observations, actions, parameters, torch.cat([values, last[None]])

    def _observed(self, step: int) -> Tensor:
        observation = self._observations[step]
        if self._observations is not self._arriving:
            observation.copy_(self._arriving[step], non_blocking=True)
        return observation


def acting_on_accelerator(
    policy: nn.Module, distribution: Distribution, device: torch.device
) -> Callable[[Tensor, Tensor], ModuleActing]:
    """Return how a policy acts on an accelerator: as one launch a step (a CUDA graph).

    Its authors have run it on the CPU only, where it is compiled and not captured.
    """
    choose = torch.compile(choose_actions, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def act(observations: Tensor, noise: Tensor) -> Outputs:
        chosen = choose(policy, distribution, observations, noise)
        actions, parameters, values = (output.clone() for output in chosen)  # the next overwrites
        return actions, parameters, values

    return lambda observations, noise: ModuleActing(act, observations, noise, device)


class ActingGraphs:
    """A policy's `choose_actions` as graphs, for rollouts of one size on the CPU.

    A value function that shares nothing with the choice of actions is left out of it, and is
    evaluated for all steps at once, which takes a fraction of the time.

    Args:
        observations: ``[T + 1, N, *observation_shape]`` of a rollout.
        noise: ``[T, N, noise_size]``.
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
        acting = self(observations, noise)
        assert acting is not None
        with torch.inference_mode():
            acting.act(0)
        _, _, parameters, values = acting.outputs()
        torch.testing.assert_close((parameters[0], values[0]), self._example[1:])

    def __call__(self, observations: Tensor, noise: Tensor) -> GraphActing | None:
        """Return the graphs for a rollout, None where it is not laid out as the first one."""
        actions, parameters, _ = (
            torch.empty(len(noise), *one.shape, dtype=one.dtype) for one in self._example
        )
        values = torch.empty(observations.shape[:2])
        if self._value is None:
            act = self._act.bind(observations, noise, actions, parameters, values)
            nowhere = torch.empty_like(actions[:1]), torch.empty_like(parameters[:1])
            last = [self._act.bind(observations[-1:], noise[-1:], *nowhere, values[-1:])]
        else:
            act = self._act.bind(observations, noise, actions, parameters)
            batches = zip(_batches(observations), _batches(values), strict=True)
            last = [
                self._value.bind(batch[None], its_values[None]) for batch, its_values in batches
            ]
        if act is None or None in last:
            return None
        outputs = observations, actions, parameters, values
        return GraphActing(act, [run for run in last if run], outputs)


class GraphActing:
    """One rollout of a policy as graphs that write into ``outputs``; see `rollout.Acting`.

    Args:
        act: for the rows of the steps.
        last: whatever completes the outputs, each for one row.
    """

    def __init__(self, act: Run, last: Sequence[Run], outputs: RolloutOutputs) -> None:
        self._act, self._last, self._outputs = act, last, outputs
        self._actions = outputs[1].numpy()

    def act(self, step: int) -> NDArray[Any]:
        """Return the actions ``[N, *action_shape]`` of a step."""
        self._act(step, step + 1)
        return self._actions[step]

    def outputs(self) -> RolloutOutputs:
        """Return what the rollout is made of."""
        with torch.inference_mode():
            for run in self._last:
                run(0, 1)
        return self._outputs


def _batches(rows: Tensor) -> list[Tensor]:
    """Return batches of one size that cover ``[T + 1, N, ...]``; the last one overlaps."""
    flat = rows.flatten(0, 1)
    size = min(VALUE_BATCH, len(flat))
    starts = [*range(0, len(flat) - size, size), len(flat) - size]
    return [flat[start : start + size] for start in starts]
