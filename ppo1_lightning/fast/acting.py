"""How a policy acts in a rollout as graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppo1_lightning.fast.compiler import Compiled, Run
from ppo1_lightning.fast.graphs import Graph, ModuleCall
from ppo1_lightning.fast.reads import Reads
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.base import choose_actions, separate_parameters

VALUE_BATCH = 4096
"""Rows that the value function evaluates at once, where it is a network of its own."""


class ActingGraphs:
    """A policy's `choose_actions` as graphs, for rollouts of one size.

    A value function that shares nothing with the choice of actions is left out of it, and is
    evaluated for all steps at once, which takes a fraction of the time.

    Args:
        observations: ``[T + 1, N, *observation_shape]`` of a rollout, where the policy is.
        noise: ``[T, N, noise_size]``.
        pools: the environments that it acts in at once.
        state, starts: ``[N, S]`` and ``[T + 1, N]``, see `rollouts.acting.ModuleActing`.
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
        pools: Sequence[slice],
        state: Tensor | None = None,
        starts: Tensor | None = None,
        *,
        compiled: Compiled,
    ) -> None:
        # What was before must be known, step by step.
        remembers = state is not None and state.shape[-1] > 0
        apart = not remembers and separate_parameters(policy, observations[0]) is not None
        self._reads, self._remembers = Reads(), remembers

        def act(policy: Callable[..., Any], *row: Tensor) -> None:
            observations, noise, *rest = row
            memory, results = (rest[:2], rest[2:]) if remembers else ([], rest)
            chosen = choose_actions(policy, distribution, observations, noise, *memory)
            for result, its_content in zip(results, chosen, strict=False):
                result.copy_(its_content)

        def value(policy: Callable[..., Any], observations: Tensor, values: Tensor) -> None:
            values.copy_(policy(observations, None)[1])

        self._act = PolicyGraph(policy, act, compiled=compiled)
        # Once a rollout: compiling it would not repay itself.
        self._value = PolicyGraph(policy, value, compiled=False) if apart else None
        self._device = observations.device
        with torch.inference_mode():
            first = observations[0], noise[0].to(self._device)
            begins = None if starts is None else starts[0].to(self._device)
            self._example = choose_actions(policy, distribution, *first, state, begins)[:3]
        with self._reads.recorded(policy):
            acting = self(observations, noise, pools, state, starts)
        with torch.inference_mode():
            for pool in range(len(pools)):
                acting.act(0, pool)
        _, _, dist_params, values, _ = acting.outputs()
        torch.testing.assert_close((dist_params[0], values[0]), self._example[1:])

    def outdated(self) -> str | None:
        """Return the name of what has changed since the graphs were traced, None for nothing."""
        return self._reads.changed()

    def __call__(
        self,
        observations: Tensor,
        noise: Tensor,
        pools: Sequence[slice],
        state: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> GraphActing:
        """Return the graphs for a rollout that is laid out as the first one.

        Args:
            observations: wherever they arrive, and so ``starts``.
        """
        arriving, noise = observations, noise.to(self._device)
        elsewhere = arriving.device != self._device
        if elsewhere:
            observations = torch.empty_like(arriving, device=self._device)
        actions, dist_params, _ = (one.new_empty(len(noise), *one.shape) for one in self._example)
        values = torch.empty(observations.shape[:2], device=self._device)
        states = values.new_empty(*values.shape, 0)
        results: tuple[Tensor, ...] = actions, dist_params, values
        memory: tuple[Tensor, ...] = ()
        if self._remembers:
            assert state is not None
            assert starts is not None
            states = state.new_empty(len(values) + 1, *state.shape)  # one more after the last row
            states[0] = state
            here = torch.empty_like(starts, device=self._device) if elsewhere else starts
            memory, results = (states[:-1], here), (*results, states[1:])
        if self._value is None:
            steps = self._bind_step((observations, noise, *memory, *results), pools)
            nowhere = torch.empty_like(actions[:1]), torch.empty_like(dist_params[:1])
            last_results = *nowhere, *(result[len(noise) :] for result in results[2:])
            last_row = observations[-1:], noise[-1:], *(part[len(noise) :] for part in memory)
            last = self._bind_step((*last_row, *last_results), pools)
        else:
            steps = self._bind_step((observations, noise, actions, dist_params), pools)
            batches = zip(_batches(observations), _batches(values), strict=True)
            last = [
                self._value.bind(batch[None], its_values[None]) for batch, its_values in batches
            ]
        outputs = observations, actions, dist_params, values, states[: len(values)]
        if self._device.type == "cpu":
            return GraphActing(steps, last, outputs, pools)
        arriving_here = [(arriving, observations)] if elsewhere else []
        if elsewhere and memory and starts is not None:
            arriving_here.append((starts, memory[1]))
        return DeviceActing(steps, last, outputs, pools, arriving_here)

    def _bind_step(self, tensors: Sequence[Tensor], pools: Sequence[slice]) -> list[Run]:
        return [self._act.bind(*(tensor[:, envs] for tensor in tensors)) for envs in pools]


class GraphActing:
    """One rollout of a policy as graphs that write into ``outputs``; see `rollouts.acting.Acting`.

    Args:
        steps: for the rows of the steps, one for each pool.
        last: whatever completes the outputs, each for one row.
        outputs: see `rollouts.acting.RolloutOutputs`.
        pools: see `ActingGraphs`.
    """

    def __init__(
        self,
        steps: Sequence[Run],
        last: Sequence[Run],
        outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        pools: Sequence[slice],
    ) -> None:
        self._steps, self._last, self._outputs = steps, last, outputs
        self._actions = self._on_host(outputs[1])
        self._by_pool = [self._actions[:, envs].numpy() for envs in pools]

    def act(self, step: int, pool: int = 0) -> NDArray[Any]:
        """Return the actions ``[n, *action_shape]`` of a step."""
        self._steps[pool](step, step + 1)
        return self._by_pool[pool][step]

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what the rollout is made of."""
        with torch.inference_mode():
            for run in self._last:
                run(0, 1)
        return self._outputs

    def _on_host(self, actions: Tensor) -> Tensor:
        """Return where the environments find the actions ``[T, N, ...]``."""
        return actions


class DeviceActing(GraphActing):
    """The same on a device that each observation goes to when it is acted on, to stay there.

    Args:
        arriving: what the device is to fetch, ``[T + 1, N, ...]``, and where to; observations are
            in memory that it can read by itself.
    """

    def __init__(
        self,
        steps: Sequence[Run],
        last: Sequence[Run],
        outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        pools: Sequence[slice],
        arriving: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(steps, last, outputs, pools)
        self._pools, self._arriving = pools, arriving

    def act(self, step: int, pool: int = 0) -> NDArray[Any]:
        """Return the actions ``[n, *action_shape]`` of a step."""
        envs = self._pools[pool]
        self._fetch(step, envs)
        chosen = super().act(step, pool)
        self._actions[step, envs].copy_(self._outputs[1][step, envs], non_blocking=True)
        torch.cuda.current_stream(self._outputs[1].device).synchronize()  # the one wait of a step
        return chosen

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what the rollout is made of, on the device."""
        self._fetch(-1, slice(None))
        return super().outputs()

    def _on_host(self, actions: Tensor) -> Tensor:
        return torch.empty_like(actions, device="cpu", pin_memory=True)

    def _fetch(self, step: int, envs: slice) -> None:
        for source, here in self._arriving:
            here[step, envs].copy_(source[step, envs], non_blocking=True)


class PolicyGraph:
    """What a policy does with observations, as a `Graph`.

    Args:
        policy: its parameters and buffers may change between two `bind` calls.
        function: takes the policy and one row of each tensor, and writes its results into them.
        compiled: see `Graph`.
    """

    def __init__(
        self, policy: nn.Module, function: Callable[..., None], *, compiled: Compiled
    ) -> None:
        self._call, self._function = ModuleCall(policy, []), function
        self._graph = Graph(self._run, module=self._call, compiled=compiled, hoists=True)

    def bind(self, *rows: Tensor) -> Run:
        """Return the graph with the policy's tensors as they are now, see `Graph.bind`."""
        return self._graph.bind(self._call.others(), rows)

    def _run(self, *tensors: Tensor) -> None:
        count = self._call.num_others
        others, inputs = tensors[:count], tensors[count:]

        def policy(*arguments: Tensor | None) -> Any:
            return self._call([], others, *arguments)

        self._function(policy, *inputs)


def _batches(rows: Tensor) -> list[Tensor]:
    """Return batches of one size that cover ``[T + 1, N, ...]``; the last one overlaps."""
    flat = rows.flatten(0, 1)
    size = min(VALUE_BATCH, len(flat))
    starts = [*range(0, len(flat) - size, size), len(flat) - size]
    return [flat[start : start + size] for start in starts]
