"""How a policy acts in a rollout: as the module it is, or as graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppo1_lightning.distributions import Distribution
from ppo1_lightning.graphs import PolicyGraph, separate_parameters
from ppo1_lightning.rollout import Acting

VALUE_BATCH = 4096
"""Rows that the value function evaluates at once, where it is a network of its own."""


def choose_actions(
    policy: Callable[..., Any], distribution: Distribution, observations: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return actions ``[N, ...]``, distribution parameters ``[N, P]`` and values ``[N]``."""
    parameters, values, _ = policy(observations, None)
    parameters = parameters.float()
    return distribution.sample(parameters, noise), parameters, values.float()


class GraphActing:
    """A policy's `choose_actions` as a graph, for rollouts of one size on the CPU.

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
        outputs = 2 if apart else 3

        def act(policy: Callable[..., Any], *inputs: Tensor) -> tuple[Tensor, ...]:
            return choose_actions(policy, distribution, *inputs)[:outputs]

        def value(policy: Callable[..., Any], observations: Tensor) -> tuple[Tensor]:
            return (policy(observations, None)[1].float(),)

        self._act = PolicyGraph(policy, act, compiled=compiled)
        self._value = PolicyGraph(policy, value, compiled=compiled) if apart else None
        with torch.inference_mode():
            found = self._act(observations[0], noise[0])[1:]
            expected = choose_actions(policy, distribution, observations[0], noise[0])[1:outputs]
            if self._value is not None:
                batch = _batches(observations)[0][1]
                found = [*found, *self._value(batch)]
                expected = [*expected, policy(batch, None)[1].float()]
        torch.testing.assert_close(list(found), list(expected))

    def __call__(self, observations: Tensor, noise: Tensor) -> Acting | None:
        """Return the graphs for a rollout, None where it is not laid out as the first one."""
        value = self._value
        act = self._act.bind(observations[0], noise[0])
        if act is None:
            return None
        if value is None:
            return Acting(act)
        of_batch = value.bind(_batches(observations)[0][1])
        if of_batch is None:
            return None

        def values(observations: Tensor) -> Tensor:
            values = torch.empty(observations.shape[:2])
            with torch.inference_mode():
                for rows, batch in _batches(observations):
                    values.view(-1)[rows] = of_batch(batch)[0]
            return values

        return Acting(act, values)


def _batches(observations: Tensor) -> list[tuple[slice, Tensor]]:
    """Return batches of one size that cover ``[T + 1, N, ...]``; the last one overlaps."""
    flat = observations.flatten(0, 1)
    size = min(VALUE_BATCH, len(flat))
    starts = [*range(0, len(flat) - size, size), len(flat) - size]
    return [(slice(start, start + size), flat[start : start + size]) for start in starts]
