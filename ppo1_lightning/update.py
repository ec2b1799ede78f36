"""The minibatch step: loss, gradient, sum over ranks, optimizer. The one place that knows how.

`EagerUpdate` takes any optimizer and precision. `CompiledUpdate` keeps parameters and Adam's
moments in flat vectors and compiles gradient and Adam into one graph (two, around the all-reduce,
where there are several ranks). Both compute the same update.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.distributed import all_max, all_sum, world_size
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.optimizers import TensorFlowAdam
from ppo1_lightning.segment import Minibatch

_log = logging.getLogger(__name__)


Loss = Callable[[Tensor, Tensor, Minibatch, Tensor], Tensor]
"""From distribution parameters ``[B, P]``, values ``[B]``, the minibatch and the clip range to this
rank's share of the loss, a scalar."""


class Update(Protocol):
    """Takes one optimizer step on the policy."""

    def __call__(self, minibatch: Minibatch, clip_coef: Tensor) -> None: ...


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

    def __call__(self, minibatch: Minibatch, clip_coef: Tensor) -> None:
        parameters, values, _ = self.policy(minibatch.observations, None)
        loss = self.loss(parameters, values, minibatch, clip_coef)
        # Not `backward`: DDP's hooks would average what is already the share of a global mean.
        gradients = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        for parameter, gradient in zip(self.parameters, _all_sum(gradients), strict=True):
            parameter.grad = gradient
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _all_sum(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Sum tensors over ranks in one call."""
    if world_size() == 1:
        return tensors
    flat = all_sum(torch.cat([t.flatten() for t in tensors]))
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


class _FlatState(NamedTuple):
    flat: Tensor  # all parameters, [P]
    mean: Tensor  # Adam's first moments, [P]
    square: Tensor  # Adam's second moments, [P]


class CompiledUpdate:
    """The fast path: flat parameters, gradient and Adam in one compiled graph.

    The policy's parameters and the optimizer's moments become views of flat vectors, so that
    checkpoints, `policy(...)` and the optimizer see every step; create it when nothing moves the
    parameters any more.

    Raises:
        ConfigurationError: an optimizer other than Adam over all of the policy's parameters.
    """

    def __init__(
        self,
        policy: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        why_not = self.unsupported(policy, optimizer)
        if why_not:
            raise ConfigurationError(f"compile=true {why_not}; use compile=false")
        self.policy, self.loss, self.optimizer = policy, loss, optimizer
        self.max_grad_norm = max_grad_norm
        self.parameters = dict(policy.named_parameters())
        self._buffers = [name for name, _ in policy.named_buffers()]
        self._sizes = [p.numel() for p in self.parameters.values()]
        first = optimizer.state.get(optimizer.param_groups[0]["params"][0], {})
        self._steps_taken = int(first.get("step", 0))
        self._state = self._flatten()
        self._write_steps(optimizer)
        self._writes_steps = False
        self._graphs: list[Callable[..., Any]] = []

    @staticmethod
    def unsupported(policy: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
        """Return why this path cannot be taken, None where it can."""
        if type(optimizer) not in (torch.optim.Adam, TensorFlowAdam):
            return f"supports Adam only, not {type(optimizer).__name__}"
        if len(optimizer.param_groups) != 1:
            return "supports one parameter group only"
        if any(torch.is_autocast_enabled(p.device.type) for p in policy.parameters()):
            return "supports precision 32-true only"
        group = optimizer.param_groups[0]
        if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
            return "supports Adam without weight_decay, amsgrad and maximize only"
        if [id(p) for p in group["params"]] != [id(p) for p in policy.parameters()]:
            return "needs an optimizer over all of the policy's parameters"
        if any(p.dtype != torch.float32 or not p.requires_grad for p in policy.parameters()):
            return "supports float32 parameters only, none of them frozen"
        return None

    def _flatten(self) -> _FlatState:
        """Lay parameters and moments out in flat vectors, of which they become views."""
        parameters = list(self.parameters.values())
        flat = torch.cat([p.detach().flatten() for p in parameters])
        mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
        splits = (vector.split(self._sizes) for vector in (flat, mean, square))
        for parameter, *parts in zip(parameters, *splits, strict=True):
            values, mean_view, square_view = (part.view_as(parameter) for part in parts)
            parameter.data = values
            state = self.optimizer.state[parameter]
            for name, view in (("exp_avg", mean_view), ("exp_avg_sq", square_view)):
                if name in state:
                    view.copy_(state[name])
                state[name] = view
        return _FlatState(flat, mean, square)

    def _write_steps(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell the optimizer's state how many steps were taken: when it is saved is enough."""
        for parameter in self.parameters.values():
            optimizer.state[parameter]["step"] = torch.tensor(float(self._steps_taken))

    def __call__(self, minibatch: Minibatch, clip_coef: Tensor) -> None:
        if not self._writes_steps:  # not before the first step, lest a fallback be overwritten
            self.optimizer.register_state_dict_pre_hook(self._write_steps)
            self._writes_steps = True
        self._steps_taken += 1
        self._run(self._state, self._batch(minibatch, clip_coef), self._steps_taken, all_sum)

    def compile(self, minibatch: Minibatch, clip_coef: Tensor) -> float:
        """Compile for minibatches like this one; return the seconds it took.

        The first calls are made on copies, which leaves the run as it is.
        """
        started = time.perf_counter()
        copies = _FlatState(*(vector.clone() for vector in self._state))
        # No collective here: should one rank fail, the others still are where it is.
        self._run(copies, self._batch(minibatch, clip_coef), 1, reduce=lambda gradient: gradient)
        return time.perf_counter() - started

    def _run(
        self,
        state: _FlatState,
        batch: tuple[Tensor, ...],
        t: int,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Take step ``t`` on ``state``: one graph, or two around the sum over ranks."""
        scale = self._adam_scale(t)
        if world_size() == 1:
            self._graph(0, self._gradient_step, *state, scale, *batch)
        else:
            gradient = reduce(self._graph(0, self._gradient, state.flat, *batch))
            self._graph(1, self._adam, *state, scale, gradient)

    def _batch(self, minibatch: Minibatch, clip_coef: Tensor) -> tuple[Tensor, ...]:
        """Return all tensors that the loss depends on, but the parameters."""
        # Buffers are looked up every time: a policy may put new tensors in their place.
        buffers = map(self.policy.get_buffer, self._buffers)
        return (*minibatch, clip_coef, *buffers)

    def _graph(self, index: int, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """Call a function of tensors, compiled when it is first called."""
        if index == len(self._graphs):
            # Traced to a graph of its own first: `torch.compile` keeps its cache with the code
            # object, where runs of one process would crowd each other out.
            graph = make_fx(lambda *inputs: function(*inputs))(*tensors)
            self._graphs.append(torch.compile(graph, fullgraph=True, dynamic=False))
        return self._graphs[index](*tensors)

    def _adam_scale(self, t: int) -> Tensor:
        """Return the step size and the epsilon that fold in the bias corrections of step ``t``."""
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        correction = (1 - beta2**t) ** 0.5
        # Both styles as a * m / (sqrt(v) + eps), see `TensorFlowAdam`.
        is_hat = isinstance(self.optimizer, TensorFlowAdam)
        epsilon = group["eps"] * (1 if is_hat else correction)
        step_size = group["lr"] * correction / (1 - beta1**t)
        return torch.tensor([step_size, epsilon], device=self._state.flat.device)

    def _gradient_step(
        self, flat: Tensor, mean: Tensor, square: Tensor, scale: Tensor, *batch: Tensor
    ) -> None:
        self._adam(flat, mean, square, scale, self._gradient(flat, *batch))

    def _gradient(self, flat: Tensor, *batch: Tensor) -> Tensor:
        fields = len(Minibatch._fields)
        minibatch, clip_coef = Minibatch(*batch[:fields]), batch[fields]
        buffers = dict(zip(self._buffers, batch[fields + 1 :], strict=True))

        def loss_of(flat: Tensor) -> Tensor:
            parts = zip(self.parameters.items(), flat.split(self._sizes), strict=True)
            views = {name: part.view_as(parameter) for (name, parameter), part in parts}
            arguments = (minibatch.observations, None)
            parameters, values, _ = functional_call(self.policy, views | buffers, arguments)
            return self.loss(parameters, values, minibatch, clip_coef)

        return grad(loss_of)(flat)

    def _adam(
        self, flat: Tensor, mean: Tensor, square: Tensor, scale: Tensor, gradient: Tensor
    ) -> None:
        if self.max_grad_norm is not None:
            norm = gradient.norm()
            gradient = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        beta1, beta2 = self.optimizer.param_groups[0]["betas"]
        step_size, epsilon = scale.unbind()
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        flat.sub_(step_size * mean / (square.sqrt() + epsilon))


COMPILE_FROM_STEPS = 20_000
"""Optimizer steps from which ``compile="auto"`` compiles: fewer do not repay the compilation."""


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
        compile: True, False or ``"auto"``: compiled where it is supported, a C++ compiler is there
            and the run is long enough to repay the compilation.
        optimizer_steps: of the whole run, None where only the run can tell.
        example: arguments of the first update, to compile for.

    Raises:
        ConfigurationError: ``compile`` is True and this run cannot be compiled.
    """
    arguments = (policy, loss, optimizer, max_grad_norm)
    if compile is False:
        return EagerUpdate(*arguments)
    if compile == "auto":
        why_not = CompiledUpdate.unsupported(policy, optimizer)
        if optimizer_steps is None:
            why_not = "may not repay itself in a run of unknown length"
        elif optimizer_steps < COMPILE_FROM_STEPS:
            why_not = f"would not repay itself in {optimizer_steps:,} optimizer steps"
        if why_not:
            _log.info("update: eager (compiling %s)", why_not)
            return EagerUpdate(*arguments)
    update, seconds, failure = None, 0.0, None
    try:
        update = CompiledUpdate(*arguments)
        seconds = update.compile(*example)
    except Exception as error:  # whatever the compiler or the user's policy raises
        failure = error
    # One rank that cannot compile takes the others with it: they have to stay in step.
    failed = all_max(float(failure is not None), example[1].device) > 0
    if update is not None and not failed:
        _log.info("update: compiled in %.1f s", seconds)
        return update
    reason = "it did on another rank" if failure is None else _one_line(failure)
    if compile is True:
        raise ConfigurationError(f"compile=true failed: {reason}") from failure
    _log.warning("update: eager, because compiling failed: %s", reason)
    return EagerUpdate(*arguments)


def _one_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))
