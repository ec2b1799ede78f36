"""The minibatch step: loss, gradient, sum over ranks, optimizer. The one place that knows how.

`EagerUpdate` takes any optimizer and precision. `GraphUpdate` keeps parameters and Adam's moments
in flat vectors and runs gradient and Adam as one graph (two, around the all-reduce, where there are
several ranks), traced or compiled. All compute the same update.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.distributed import all_max, all_sum, world_size
from ppo1_lightning.errors import ConfigurationError, one_line
from ppo1_lightning.fast.compiler import Run
from ppo1_lightning.fast.graphs import Graph, PolicyCall, separate_parameters
from ppo1_lightning.optimizers import TensorFlowAdam
from ppo1_lightning.rollouts.segment import Minibatch

_log = logging.getLogger(__name__)


Loss = Callable[[Tensor, Tensor, Minibatch, Tensor], Tensor]
"""From distribution parameters ``[B, P]``, values ``[B]``, the minibatch and the clip range to this
rank's share of the loss, a scalar."""


class Update(Protocol):
    """Takes one optimizer step on the policy for each of some minibatches."""

    def __call__(self, minibatches: Minibatch, clip_coef: Tensor) -> None:
        """Take the steps: fields are ``[M, B, ...]``, ``clip_coef`` is a scalar."""
        ...


class EagerUpdate:
    """The plain path: autograd, one flat all-reduce, any optimizer.

    ``max_grad_norm`` None leaves the gradient as it is.
    """

    def __init__(
        self,
        policy: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        self.policy, self.loss, self.optimizer = policy, loss, optimizer
        self.max_grad_norm = max_grad_norm
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters = [p for p in parameters if p.requires_grad]

    def __call__(self, minibatches: Minibatch, clip_coef: Tensor) -> None:
        for minibatch in map(Minibatch, *(field.unbind() for field in minibatches)):
            self._step(minibatch, clip_coef)

    def _step(self, minibatch: Minibatch, clip_coef: Tensor) -> None:
        # Not `backward`: DDP's hooks would average what is already the share of a global mean.
        gradients = _all_sum(self.gradients(minibatch, clip_coef))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self, minibatch: Minibatch, clip_coef: Tensor) -> Sequence[Tensor]:
        """Return this rank's share of each parameter's gradient."""
        parameters, values, _ = self.policy(minibatch.observations, None)
        loss = self.loss(parameters, values, minibatch, clip_coef)
        return torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)


def _all_sum(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Sum tensors over ranks in one call."""
    if world_size() == 1:
        return tensors
    flat = all_sum(_flat(tensors))
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


class _FlatState(NamedTuple):
    flat: Tensor  # all parameters, [P]
    mean: Tensor  # Adam's first moments, [P]
    square: Tensor  # Adam's second moments, [P]


class GraphUpdate:
    """The fast path: flat parameters, gradient and Adam in one graph.

    The policy's parameters and the optimizer's moments become views of flat vectors, so that
    checkpoints, `policy(...)` and the optimizer see every step; create it when nothing moves the
    parameters any more.

    A value function that shares no parameter with the choice of actions learns in a graph of its
    own, at the same time where a second core is free: neither reads what the other writes.

    Args:
        compiled: compile the graphs, see `Graph`.

    Attributes:
        parts: names of the parameters that learn together.
        second_core: a thread for the second part, None where the parts take turns.

    Raises:
        ConfigurationError: an optimizer other than Adam over all of the policy's parameters.
    """

    def __init__(
        self,
        policy: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
        *,
        compiled: bool,
    ) -> None:
        why_not = self.unsupported(policy, optimizer)
        if why_not:
            raise ConfigurationError(f"a graph {why_not}; use compile=false")
        self.loss, self.optimizer, self.compiled = loss, optimizer, compiled
        self.max_grad_norm = max_grad_norm
        self._policy = PolicyCall(policy)
        first = optimizer.state.get(optimizer.param_groups[0]["params"][0], {})
        self._steps_taken = int(first.get("step", 0))

    @staticmethod
    def unsupported(policy: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
        """Return why this path cannot be taken, None where it can."""
        if type(optimizer) not in (torch.optim.Adam, TensorFlowAdam):
            return f"supports Adam only, not {type(optimizer).__name__}"
        if len(optimizer.param_groups) != 1:
            return "supports one parameter group only"
        group = optimizer.param_groups[0]
        if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
            return "supports Adam without weight_decay, amsgrad and maximize only"
        if [id(p) for p in group["params"]] != [id(p) for p in policy.parameters()]:
            return "needs an optimizer over all of the policy's parameters"
        if any(p.dtype != torch.float32 or not p.requires_grad for p in policy.parameters()):
            return "supports float32 parameters only, none of them frozen"
        return None

    def prepare(self, minibatch: Minibatch, clip_coef: Tensor) -> float:
        """Trace (and compile) for minibatches like this one; return the seconds it took.

        The first step is taken on copies, which leaves the run as it is, and without a collective:
        should one rank fail, the others still are where it is.

        Raises:
            ConfigurationError: the graph's gradient is not the eager one, as for a policy that
                draws random numbers or depends on more than its arguments; or the policy changes
                its buffers.
        """
        with self._buffers_unchanged():
            return self._prepare(minibatch, clip_coef)

    def _prepare(self, minibatch: Minibatch, clip_coef: Tensor) -> float:
        started = time.perf_counter()
        self.parts = self._take_apart(minibatch, clip_coef)
        self._parameters = [self._policy.parameters[name] for part in self.parts for name in part]
        self._state = self._flatten()
        self._gradient_steps = self._graphs_of_parts(self._take_gradient_step)
        self._gradients = self._graphs_of_parts(self._take_gradient)
        self._adam = self._graph_of(self._take_adam_step)
        self.second_core = self._find_second_core()

        zeros = torch.zeros_like(self._state.flat)
        copies = _FlatState(self._state.flat.clone(), zeros, zeros.clone())
        self._fixed = [tensor.clone() for tensor in (clip_coef, *self._policy.buffers())]
        minibatches, scales = [field[None] for field in minibatch], self._adam_scales(1)
        with torch.inference_mode():
            self._run(copies, self._fixed, minibatches, scales, reduce=lambda gradient: gradient)
        seconds = time.perf_counter() - started
        eager = EagerUpdate(self._policy.policy, self.loss, self.optimizer, self.max_grad_norm)
        gradients = dict(zip(eager.parameters, eager.gradients(minibatch, clip_coef), strict=True))
        self._check_gradient(copies.mean, _flat(gradients[p] for p in self._parameters))
        return seconds

    @contextmanager
    def _buffers_unchanged(self) -> Iterator[None]:
        """Refuse a policy that changes its buffers when it is called: a graph would not."""
        before = [buffer.clone() for buffer in self._policy.buffers()]
        changed = False
        try:
            yield
        finally:
            for buffer, as_it_was in zip(self._policy.buffers(), before, strict=True):
                if not torch.equal(buffer, as_it_was):
                    changed = True
                    buffer.copy_(as_it_was)
        if changed:
            raise ConfigurationError(
                "the policy changes its buffers when it is called, expected a pure function of its "
                "arguments, parameters and buffers"
            )

    def _take_apart(self, minibatch: Minibatch, clip_coef: Tensor) -> list[list[str]]:
        """Return names of the parameters that learn together: of one part, or of two."""
        everything = [list(self._policy.parameters)]
        if self.max_grad_norm is not None:  # the norm is that of all
            return everything
        apart = separate_parameters(self._policy.policy, minibatch.observations)
        if apart is None:
            return everything
        self.parts = list(apart)
        rows = [clip_coef, *self._policy.buffers(), *minibatch]
        return everything if any(self._reads_the_other(i, rows) for i in (0, 1)) else self.parts

    def _reads_the_other(self, part: int, rows: Sequence[Tensor]) -> bool:
        """Tell whether a part's gradient depends on the other's parameters in any way.

        Only its graph can tell: autograd does not see what is detached or compared.
        """
        parameters = self._policy.parameters
        flats = [_flat(parameters[name].detach() for name in names) for names in self.parts]
        with torch.no_grad():
            graph = make_fx(lambda *t: self._gradient_of(part, t[:2], t[2:]))(*flats, *rows).graph
        graph.eliminate_dead_code()
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        return bool(inputs[1 - part].users)

    def _flatten(self) -> _FlatState:
        """Lay parameters and moments out in flat vectors, of which they become views."""
        flat = _flat(p.detach() for p in self._parameters)
        mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
        splits = map(self._split, (flat, mean, square))
        for parameter, *parts in zip(self._parameters, *splits, strict=True):
            values, mean_view, square_view = (part.view_as(parameter) for part in parts)
            parameter.data = values
            state = self.optimizer.state[parameter]
            for name, view in (("exp_avg", mean_view), ("exp_avg_sq", square_view)):
                if name in state:
                    view.copy_(state[name])
                state[name] = view
            state["step"] = torch.tensor(float(self._steps_taken))
        return _FlatState(flat, mean, square)

    def _split(self, vector: Tensor) -> Sequence[Tensor]:
        return vector.split([parameter.numel() for parameter in self._parameters])

    def _by_part(self, vector: Tensor) -> Sequence[Tensor]:
        shapes = self._policy.parameters
        return vector.split([sum(shapes[name].numel() for name in part) for part in self.parts])

    def _find_second_core(self) -> ThreadPoolExecutor | None:
        """Return a thread for the second part, None where it would wait for the first."""
        cores, several_ranks = len(os.sched_getaffinity(0)), world_size() > 1
        if len(self.parts) < 2 or cores < 2 or several_ranks or not self.compiled:
            return None
        if torch.get_num_threads() > 1:  # each part takes all of them
            return None
        return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    @torch.inference_mode()
    def __call__(self, minibatches: Minibatch, clip_coef: Tensor) -> None:
        self._check_in_place()
        scales = self._adam_scales(len(minibatches.weights))
        self._run(self._state, self._constants(clip_coef), minibatches, scales, reduce=all_sum)
        self._steps_taken += len(scales)
        for parameter in self._parameters:
            self.optimizer.state[parameter]["step"].fill_(self._steps_taken)

    def _constants(self, clip_coef: Tensor) -> list[Tensor]:
        """Return the clip range and the policy's buffers, in tensors that stay where they are."""
        now = [clip_coef, *self._policy.buffers()]
        if [(t.shape, t.dtype) for t in now] != [(t.shape, t.dtype) for t in self._fixed]:
            raise RuntimeError(_CHANGED)
        for own, given in zip(self._fixed, now, strict=True):
            own.copy_(given)
        return self._fixed

    def _check_in_place(self) -> None:
        """Raise an error where the policy's and the optimizer's tensors are not ours any more."""
        flats, means = self._split(self._state.flat), self._split(self._state.mean)
        of_policy = dict(self._policy.policy.named_parameters())
        names = (name for part in self.parts for name in part)
        for name, flat, mean in zip(names, flats, means, strict=True):
            parameter = of_policy[name]
            its_mean = self.optimizer.state[parameter].get("exp_avg", flat)
            in_place = (parameter.data_ptr(), its_mean.data_ptr()) == (
                flat.data_ptr(),
                mean.data_ptr(),
            )
            if not (in_place and parameter.requires_grad):
                raise RuntimeError(
                    "the policy's parameters or the optimizer's state were replaced or frozen in "
                    "the middle of training, expected them changed in place; use compile=false"
                )

    def _check_gradient(self, mean: Tensor, gradient: Tensor) -> None:
        """Compare Adam's first moment after its first step with the gradient it must come from."""
        beta1 = self.optimizer.param_groups[0]["betas"][0]
        expected = (1 - beta1) * self._clipped(gradient)
        # Half precision rounds where operators end, and a compiled graph has fewer of them.
        tolerance = 0.1 if torch.is_autocast_enabled(mean.device.type) else 1e-3
        if (mean - expected).norm() > tolerance * expected.norm() + 1e-7:
            raise ConfigurationError(
                "the policy does not return the same twice, expected a pure function of its "
                "arguments, parameters and buffers"
            )

    def _run(
        self,
        state: _FlatState,
        constants: Sequence[Tensor],
        minibatches: Sequence[Tensor],
        scales: Tensor,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Take a step on ``state`` for each minibatch: one graph, or two around the all-reduce."""
        count, parts = len(scales), range(len(self.parts))
        flats, means, squares = map(self._by_part, state)
        if world_size() == 1:
            rows = (*minibatches, scales)
            steps = [
                _bound(self._gradient_steps[i], (*flats, means[i], squares[i], *constants), rows)
                for i in parts
            ]
            self._at_once([functools.partial(step, 0, count) for step in steps])
            return
        gradient = torch.empty_like(state.flat)
        gradients = self._by_part(gradient)
        gradient_steps = [
            _bound(self._gradients[i], (*flats, gradients[i], *constants), minibatches)
            for i in parts
        ]
        adam_step = _bound(self._adam, (*state, gradient), [scales])
        for k in range(count):
            for gradient_step in gradient_steps:
                gradient_step(k, k + 1)
            gradient.copy_(reduce(gradient))
            adam_step(k, k + 1)

    def _at_once(self, calls: Sequence[Callable[[], None]]) -> None:
        if self.second_core is None:
            for call in calls:
                call()
        else:
            first, second = calls
            done = self.second_core.submit(second)
            try:
                first()
            finally:  # nothing is to change the parameters after this
                done.result()

    def _adam_scales(self, count: int) -> Tensor:
        """Return the step size and epsilon of the next steps, bias corrections folded in.

        Both styles as a * m / (sqrt(v) + eps), see `TensorFlowAdam`: ``[count, 2]``.
        """
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        t = self._steps_taken + np.arange(1, count + 1)
        correction = np.sqrt(1 - beta2**t)
        is_hat = isinstance(self.optimizer, TensorFlowAdam)
        epsilon = group["eps"] * (np.ones(count) if is_hat else correction)
        step_size = group["lr"] * correction / (1 - beta1**t)
        return torch.from_numpy(np.stack([step_size, epsilon], -1)).to(self._state.flat)

    # ---------------------------------------------------------------- what the graphs hold

    def _graphs_of_parts(self, function: Callable[..., None]) -> list[Graph]:
        parts = range(len(self.parts))
        return [self._graph_of(functools.partial(function, i)) for i in parts]

    def _graph_of(self, function: Callable[..., None]) -> Graph:
        return Graph(function, policy=self._policy, compiled=self.compiled)

    def _take_gradient_step(self, part: int, *tensors: Tensor) -> None:
        count = len(self.parts)
        flats, (mean, square, *batch, scale) = tensors[:count], tensors[count:]
        gradient = self._gradient_of(part, flats, batch)
        self._take_adam_step(flats[part], mean, square, gradient, scale)

    def _take_gradient(self, part: int, *tensors: Tensor) -> None:
        count = len(self.parts)
        flats, (gradient, *batch) = tensors[:count], tensors[count:]
        gradient.copy_(self._gradient_of(part, flats, batch))

    def _gradient_of(self, part: int, flats: Sequence[Tensor], batch: Sequence[Tensor]) -> Tensor:
        """Return this rank's share of the gradient for one part's parameters."""
        count = len(Minibatch._fields)
        (clip_coef, *buffers), minibatch = batch[:-count], Minibatch(*batch[-count:])

        def loss_of(flat: Tensor) -> Tensor:
            views = self._views([*flats[:part], flat, *flats[part + 1 :]])
            parameters, values, _ = self._policy(views, buffers, minibatch.observations)
            return self.loss(parameters, values, minibatch, clip_coef)

        # Not `grad`: it starts from the loss, and a part's graph is to be free of the other part.
        pull_back = vjp(loss_of, flats[part])[1]
        return pull_back(flats[part].new_ones(()))[0]

    def _views(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """Return the policy's parameters, in its order, as views of the parts' flat vectors."""
        shapes, views = self._policy.parameters, {}
        for names, flat in zip(self.parts, flats, strict=True):
            pieces = flat.split([shapes[name].numel() for name in names])
            views |= {
                name: piece.view_as(shapes[name]) for name, piece in zip(names, pieces, strict=True)
            }
        return [views[name] for name in shapes]

    def _take_adam_step(
        self, flat: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, scale: Tensor
    ) -> None:
        gradient = self._clipped(gradient)
        beta1, beta2 = self.optimizer.param_groups[0]["betas"]
        step_size, epsilon = scale.unbind()
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        flat.sub_(step_size * mean / (square.sqrt() + epsilon))

    def _clipped(self, gradient: Tensor) -> Tensor:
        if self.max_grad_norm is None:
            return gradient
        return gradient * (self.max_grad_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)


_CHANGED = (
    "shapes, strides or dtypes of the minibatches or of the policy's buffers have changed since "
    "the update was made; use compile=false"
)


def _bound(graph: Graph, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run:
    run = graph.bind(fixed, rows)
    if run is None:
        raise RuntimeError(_CHANGED)
    return run


COMPILE_FROM_STEPS = 20_000
"""Optimizer steps from which ``compile="auto"`` compiles: fewer do not repay the compilation."""

PATHS = (True, False, "auto", "trace")
"""What ``compile`` can be."""


def make_update(
    policy: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float | None,
    compile: bool | str,
    optimizer_steps: int | None,
    example: tuple[Minibatch, Tensor],
) -> Update:
    """Choose the path of a run and say so.

    Args:
        compile: True for a compiled graph, ``"trace"`` for a traced one, False for neither;
            ``"auto"`` takes a compiled one where the run is long enough to repay the compilation,
            and falls back where a path does not work.
        optimizer_steps: of the whole run, None where only the run can tell.
        example: a minibatch ``[B, ...]`` and the clip range, to trace for.

    Raises:
        ConfigurationError: ``compile`` is True or ``"trace"`` and this run cannot take that path.
    """
    arguments = (policy, loss, optimizer, max_grad_norm)
    why_not = GraphUpdate.unsupported(policy, optimizer)
    if compile == "auto" and why_not:
        _log.info("update: eager (a graph %s)", why_not)
        return EagerUpdate(*arguments)
    for compiled in _graphs_to_try(compile, optimizer_steps):
        update, reason = _try_graph(arguments, example, compiled=compiled)
        if update is not None:
            return update
        name = "compiling" if compiled else "tracing"
        if compile != "auto":
            raise ConfigurationError(f"compile={str(compile).lower()} failed: {reason}")
        _log.warning("update: %s failed: %s", name, reason)
    if compile is not False:
        _log.info("update: eager")
    return EagerUpdate(*arguments)


def _graphs_to_try(compile: bool | str, optimizer_steps: int | None) -> list[bool]:
    """Return whether to compile, for each graph to be tried in turn."""
    if compile == "auto":
        long = optimizer_steps is not None and optimizer_steps >= COMPILE_FROM_STEPS
        return [True, False] if long else [False]
    return {True: [True], "trace": [False], False: []}[compile]


def _try_graph(
    arguments: tuple[Any, ...], example: tuple[Minibatch, Tensor], *, compiled: bool
) -> tuple[GraphUpdate | None, str]:
    """Return a graph update, or None and why it is not possible on every rank."""
    update, seconds, reason = None, 0.0, ""
    try:
        update = GraphUpdate(*arguments, compiled=compiled)
        seconds = update.prepare(*example)
    except Exception as error:  # whatever the compiler or the user's policy raises
        reason = one_line(error)
    # One rank that fails takes the others with it: they have to stay in step.
    if all_max(float(bool(reason)), example[1].device) > 0:
        return None, reason or "it did on another rank"
    _log.info("update: %s in %.1f s", "compiled" if compiled else "traced", seconds)
    return update, ""
