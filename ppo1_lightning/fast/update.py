"""The minibatch step as a graph: flat parameters, gradient and Adam without modules and autograd.

Where there are several ranks it is two graphs, around the all-reduce.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vjp

from ppo1_lightning.distributed import all_max, all_sum, world_size
from ppo1_lightning.errors import ConfigurationError, one_line
from ppo1_lightning.fast import check
from ppo1_lightning.fast.compiler import Compiled
from ppo1_lightning.fast.flat import FlatLayout, FlatState, flat_vector, flattened
from ppo1_lightning.fast.graphs import Graph, ModuleCall
from ppo1_lightning.fast.parts import call_at_once, learning_together, second_core
from ppo1_lightning.fast.reads import Reads
from ppo1_lightning.fast.recurrence import as_an_operator
from ppo1_lightning.fast.steps import step_of
from ppo1_lightning.optimizers import clip_factor

_TIMED = 3
"""Steps whose time is taken together."""


class _Graphs(NamedTuple):
    gradient_steps: list[Graph]  # one a part, on one rank
    gradients: list[Graph]  # likewise, on several: around the all-reduce
    optimizer_step: list[Graph]


class GraphUpdate:
    """Takes a step on an objective for each of some minibatches, see `algorithms.update`.

    The optimizer's parameters and moments become views of flat vectors, so that checkpoints, the
    policy and the optimizer see every step; create it when nothing moves the parameters any more.
    Parameters that do not depend on each other, as those of a value function with a network of its
    own, learn in a graph of their own, at the same time where a second core is free.

    Args:
        objective: a module; called with a minibatch's tensors it returns this rank's share of the
            loss, a scalar.
        optimizer: over some of its parameters, one that `steps` knows.
        max_grad_norm: largest norm of the gradient, None for no clipping.

    Attributes:
        path: "traced", or "compiled" after `compile`.
        compiled: whether what else a run computes by graphs is to be compiled.
        parts: names of the parameters that learn together.
        second_core: a thread for the second part where none needs Python's lock; None: in turns.
        step_seconds: what a step took when it was tried, on this rank.

    Raises:
        ConfigurationError: another optimizer, or parameters that are frozen or not float32.
    """

    def __init__(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        if why_not := check.unsupported(optimizer):
            raise ConfigurationError(f"a graph {why_not}")
        step = step_of(optimizer)
        assert step is not None
        self.optimizer, self._step, self.max_grad_norm = optimizer, step, max_grad_norm
        self.path = "traced"
        self.compiled: Compiled = False
        self._objective = ModuleCall(objective, optimizer.param_groups[0]["params"])
        first = optimizer.state.get(optimizer.param_groups[0]["params"][0], {})
        self._steps_taken = int(first.get("step", 0))
        self._compare_again_at: float = self._steps_taken + check.COMPARED_AGAIN_AFTER
        self._reads, self._settings = Reads(), check.traced_settings(optimizer)

    def prepare(self, example: Sequence[Tensor]) -> None:
        """Trace for minibatches like this one, whose fields are ``[B, ...]``.

        The first step is taken on copies, which leaves the run as it is, and without a collective:
        should one rank fail, the others still are where it is.

        Raises:
            ConfigurationError: the graph's gradient is not the eager one, as for a policy that
                draws random numbers or depends on more than its arguments; or the objective changes
                buffers.
        """
        module = self._objective.module
        with check.buffers_unchanged(self._objective), self._reads.recorded(module):
            # The norm is that of all; a GPU has no cores to take turns.
            together = self.max_grad_norm is not None or example[0].device.type != "cpu"
            self.parts = learning_together(self._objective, example, together=together)
            self._layout = FlatLayout(self._objective.learning, self.parts)
            self._parameters = [self._objective.learning[name] for name in self._layout.names]
            self._state = flattened(self._parameters, self.optimizer, self._step.moments)
            self._graphs = _Graphs(
                self._graphs_of_parts(self._take_gradient_step),
                self._graphs_of_parts(self._take_gradient),
                [Graph(self._take_step, compiled=False)],
            )
            self.second_core = second_core(self.parts)
            self._check_gradient(example)
            self.step_seconds = self._time_a_step(example)

    def compile(
        self, example: Sequence[Tensor], compiled: Compiled, meanwhile: Callable[[], None]
    ) -> None:
        """Compile what was traced, and look again; compilers work ``meanwhile``."""
        self._traced = self._graphs
        self._graphs = _Graphs(*([graph.compile() for graph in kind] for kind in self._graphs))
        self.path, self.compiled = "compiled", compiled
        with check.buffers_unchanged(self._objective):
            self._check_gradient(example, meanwhile)
            self.step_seconds = self._time_a_step(example)

    def go_on_traced(self) -> None:
        """Take back `compile`, which has failed here or on another rank."""
        self._graphs, self.path, self.compiled = self._traced, "traced", False

    @functools.cached_property
    def was_kept(self) -> bool:
        """Whether an earlier run has left these graphs compiled on this machine."""
        return all(graph.is_kept() for kind in self._graphs for graph in kind)

    def _check_gradient(
        self, example: Sequence[Tensor], meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Compare a step's gradient with the eager one."""
        copies, scales, take = self._bound_to_copies(example, 1)
        meanwhile()
        with torch.inference_mode():
            take()
        loss = self._objective.module(*example)
        eager = torch.autograd.grad(
            loss, self._parameters, allow_unused=True, materialize_grads=True
        )
        group = self.optimizer.param_groups[0]
        step = self._state.flat - copies.flat
        taken = self._step.gradient(group, step, copies.moments, scales[0])
        check.compare_gradients(
            self._layout.names,
            self._layout.split(taken),
            self._layout.split(self._clipped(flat_vector(eager))),
        )

    def _time_a_step(self, example: Sequence[Tensor]) -> float:
        *_, take = self._bound_to_copies(example, _TIMED)  # threads are handed over to once
        return check.seconds_of(take, example[0].device) / _TIMED

    @torch.inference_mode()
    def _bound_to_copies(
        self, example: Sequence[Tensor], count: int
    ) -> tuple[FlatState, Tensor, Callable[[], None]]:
        """Return copies of the state, scales, and what takes ``count`` steps there."""
        flat = self._state.flat
        copies = FlatState.started(flat.clone(), self._step.moments)
        self._fixed = [tensor.clone() for tensor in self._objective.others()]
        minibatches = [torch.stack([field] * count) for field in example]
        # A long step: beside it rounding of the parameters is nothing.
        scales = flat.new_tensor([[2.0**20, 1.0]] * count)
        return copies, scales, self._bound(copies, minibatches, scales, reduce=lambda own: own)

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context in which memory is the operator that it is in the graphs."""
        return as_an_operator()

    def outdated(self, minibatches: Sequence[Tensor]) -> str | None:
        """Return why the graphs are not to take these steps, None where they are."""
        same = check.traced_settings(self.optimizer) == self._settings
        changed = self._reads.changed() if same else "the optimizer's groups or betas"
        reason = changed and check.CHANGED.format(changed)
        if self._steps_taken < self._compare_again_at:
            return reason
        self._compare_again_at = math.inf
        reason = reason or self._difference([field[0] for field in minibatches])
        # Likewise on every rank: they have to stay in step.
        if all_max(float(reason is not None), self._state.flat.device) > 0:
            return reason or "its gradient is not the eager one on another rank"
        return None

    def _difference(self, minibatch: Sequence[Tensor]) -> str | None:
        """Return how the graphs' gradient is not the eager one, None where it is."""
        try:
            with check.buffers_unchanged(self._objective):
                self._check_gradient(minibatch)
        except ConfigurationError as error:
            return f"{one_line(error)} (after {self._steps_taken} steps)"
        return None

    @torch.inference_mode()
    def __call__(self, minibatches: Sequence[Tensor]) -> None:
        """Take the steps: fields are ``[M, B, ...]``."""
        self._check_in_place()
        for own, now in zip(self._fixed, self._objective.others(), strict=True):
            if own.shape != now.shape or own.dtype != now.dtype:
                raise RuntimeError("a buffer has another shape or dtype; use compile=false")
            own.copy_(now)
        scales = self._scales(len(minibatches[0]))
        self._bound(self._state, minibatches, scales, reduce=all_sum)()
        self._steps_taken += len(scales)
        for parameter in self._parameters:
            self.optimizer.state[parameter]["step"].fill_(self._steps_taken)

    def _check_in_place(self) -> None:
        """Raise an error where the module's and the optimizer's tensors are not ours any more."""
        now = dict(self._objective.module.named_parameters())
        parameters = (now[name] for name in self._layout.names)
        first, *_ = self._step.moments
        flats, moments = map(self._layout.split, (self._state.flat, self._state.moments[0]))
        check.refuse_replaced(parameters, self.optimizer, flats, first, moments)

    def _bound(
        self,
        state: FlatState,
        minibatches: Sequence[Tensor],
        scales: Tensor,
        reduce: Callable[[Tensor], Tensor],
    ) -> Callable[[], None]:
        """Return what takes the steps: one graph each, or two around the all-reduce."""
        count, parts = len(scales), range(len(self.parts))
        flats = self._layout.by_part(state.flat)
        moments = list(zip(*map(self._layout.by_part, state.moments), strict=True))
        if world_size() == 1:
            rows = (*minibatches, scales)
            steps = [
                graph.bind((*flats, *moments[i], *self._fixed), rows)
                for i, graph in enumerate(self._graphs.gradient_steps)
            ]
            calls = [functools.partial(step, 0, count) for step in steps]
            in_turns = any(graph.needs_python for graph in self._graphs.gradient_steps)
            return functools.partial(call_at_once, calls, None if in_turns else self.second_core)
        gradient, gradients = state.gradient, self._layout.by_part(state.gradient)
        gradient_steps = [
            self._graphs.gradients[i].bind((*flats, gradients[i], *self._fixed), minibatches)
            for i in parts
        ]
        everything = (state.flat, *state.moments, gradient)
        optimizer_step = self._graphs.optimizer_step[0].bind(everything, [scales])

        def take() -> None:
            for k in range(count):
                for gradient_step in gradient_steps:
                    gradient_step(k, k + 1)
                gradient.copy_(reduce(gradient))
                optimizer_step(k, k + 1)

        return take

    def _scales(self, count: int) -> Tensor:
        """Return what changes from step to step, of the next steps: ``[count, 2]``."""
        t = self._steps_taken + np.arange(1, count + 1)
        scales = self._step.scales(self.optimizer.param_groups[0], t)
        return torch.from_numpy(scales).to(self._state.flat)

    # ---------------------------------------------------------------- what the graphs hold

    def _graphs_of_parts(self, take: Callable[..., None]) -> list[Graph]:
        takes = (functools.partial(take, part) for part in range(len(self.parts)))
        return [Graph(take, module=self._objective, compiled=False) for take in takes]

    def _take_gradient_step(self, part: int, *tensors: Tensor) -> None:
        count, kept = len(self.parts), len(self._step.moments)
        flats, moments = tensors[:count], tensors[count : count + kept]
        *batch, scale = tensors[count + kept :]
        gradient = self._gradient_of(part, flats, batch)
        self._take_step(flats[part], *moments, gradient, scale)

    def _take_gradient(self, part: int, *tensors: Tensor) -> None:
        count = len(self.parts)
        flats, (gradient, *batch) = tensors[:count], tensors[count:]
        gradient.copy_(self._gradient_of(part, flats, batch))

    def _gradient_of(self, part: int, flats: Sequence[Tensor], batch: Sequence[Tensor]) -> Tensor:
        """Return this rank's share of the gradient for one part's parameters."""
        count = self._objective.num_others
        others, minibatch = batch[:count], batch[count:]

        def loss_of(flat: Tensor) -> Tensor:
            views = self._layout.views([*flats[:part], flat, *flats[part + 1 :]])
            return self._objective(views, others, *minibatch)

        # Not `grad`: it starts from the loss, and a part's graph is to be free of the other part.
        pull_back = vjp(loss_of, flats[part])[1]
        return pull_back(flats[part].new_ones(()))[0]

    def _take_step(self, *tensors: Tensor) -> None:
        flat, *moments, gradient, scale = tensors
        group = self.optimizer.param_groups[0]
        self._step.take(group, flat, moments, self._clipped(gradient), scale)

    def _clipped(self, gradient: Tensor) -> Tensor:
        if self.max_grad_norm is None:
            return gradient
        return gradient * clip_factor([gradient], self.max_grad_norm)
