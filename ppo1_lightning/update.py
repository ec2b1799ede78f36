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

from ppo1_lightning.distributed import all_sum, world_size
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.optimizers import TensorFlowAdam

_log = logging.getLogger(__name__)


class Minibatch(NamedTuple):
    """This rank's rows of a minibatch; of an epoch's minibatches where M stands in front."""

    observations: Tensor  # [B, *observation_shape]
    actions: Tensor  # [B, *action_shape]
    advantages: Tensor  # [B] standardised
    returns: Tensor  # [B] value targets
    old_values: Tensor  # [B] of the policy that acted
    old_parameters: Tensor  # [B, P] action distribution before the update
    old_log_probs: Tensor  # [B]
    weights: Tensor  # [B] 1 / (valid rows of the minibatch on all ranks), 0 for invalid rows


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
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

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
        self._flatten()
        self._graphs: list[Callable[..., Any]] = []

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
        if any(p.dtype != torch.float32 for p in policy.parameters()):
            return "supports float32 parameters only"
        return None

    def _flatten(self) -> None:
        parameters = list(self.parameters.values())
        self._buffers = dict(self.policy.named_buffers())
        self._sizes = [p.numel() for p in parameters]
        self._flat = torch.cat([p.detach().flatten() for p in parameters])
        for parameter, part in zip(parameters, self._flat.split(self._sizes), strict=True):
            parameter.data = part.view_as(parameter)
        states = [self.optimizer.state[p] for p in parameters]
        self._moments = tuple(self._flatten_state(states, name) for name in _MOMENTS)
        self._steps_taken = max((int(s.get("step", 0)) for s in states), default=0)
        self._steps = torch.tensor(float(self._steps_taken))
        for state in states:
            state["step"] = self._steps

    def _flatten_state(self, states: list[dict[str, Tensor]], name: str) -> Tensor:
        flat = torch.zeros_like(self._flat)
        for (parameter, state), part in zip(
            zip(self.parameters.values(), states, strict=True), flat.split(self._sizes), strict=True
        ):
            view = part.view_as(parameter)
            if name in state:
                view.copy_(state[name])
            state[name] = view
        return flat

    def __call__(self, minibatch: Minibatch, clip_coef: Tensor) -> None:
        self._steps_taken += 1
        self._steps.fill_(self._steps_taken)
        scale = self._adam_scale(self._steps_taken)
        self._run(self._flat, *self._moments, minibatch, clip_coef, scale)

    def compile(self, minibatch: Minibatch, clip_coef: Tensor) -> float:
        """Compile for minibatches like this one; return the seconds it took.

        The first calls are made on copies, which leaves the run as it is.
        """
        started = time.perf_counter()
        state = [tensor.clone() for tensor in (self._flat, *self._moments)]
        self._graphs = []
        self._run(*state, minibatch, clip_coef, self._adam_scale(1))
        return time.perf_counter() - started

    def _run(
        self,
        flat: Tensor,
        mean: Tensor,
        square: Tensor,
        minibatch: Minibatch,
        clip_coef: Tensor,
        scale: Tensor,
    ) -> None:
        batch = (*minibatch, clip_coef, *self._buffers.values())
        if world_size() == 1:
            self._graph(0, self._gradient_step, flat, mean, square, scale, *batch)
        else:
            gradient = all_sum(self._graph(0, self._gradient, flat, *batch))
            self._graph(1, self._adam, flat, mean, square, scale, gradient)

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
        epsilon = group.get("epsilon_hat", group["eps"] * correction)
        step_size = group["lr"] * correction / (1 - beta1**t)
        return torch.tensor([step_size, epsilon], device=self._flat.device)

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


_MOMENTS = ("exp_avg", "exp_avg_sq")

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
        short = optimizer_steps is not None and optimizer_steps < COMPILE_FROM_STEPS
        why_not = (
            f"would not repay itself in {optimizer_steps:,} optimizer steps"
            if short
            else CompiledUpdate.unsupported(policy, optimizer)
        )
        if why_not:
            _log.info("update: eager (compiling %s)", why_not)
            return EagerUpdate(*arguments)
    try:
        update = CompiledUpdate(*arguments)
        seconds = update.compile(*example)
    except Exception as error:  # whatever the compiler or the user's policy raises
        if compile is True:
            raise ConfigurationError(f"compile=true failed: {_one_line(error)}") from error
        _log.warning("update: eager, because compiling failed: %s", _one_line(error))
        return EagerUpdate(*arguments)
    _log.info("update: compiled in %.1f s", seconds)
    return update


def _one_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))
