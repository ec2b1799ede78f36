"""The minibatch step: loss, gradient, sum over ranks, optimizer; and which path a run takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ppo1_lightning.algorithms import checks, loop
from ppo1_lightning.algorithms.policy_module import PolicyModule
from ppo1_lightning.distributed import all_sum, world_size
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.optimizers import clip_factor
from ppo1_lightning.rollouts.acting import ActingFactory
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.segment import Minibatch, Segment
from ppo1_lightning.rollouts.sharing import tell_cost
from ppo1_lightning.rollouts.sizes import Sizes

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.on_policy import OnPolicyModule
    from ppo1_lightning.fast.compiler import Compiled

_log = logging.getLogger(__name__)

PATHS = (True, False, "auto", "trace")
"""What ``compile`` can be."""


class Update(Protocol):
    """Takes one optimizer step for each of some minibatches.

    Attributes:
        path: "eager", "traced" or "compiled".
        compiled: whether a run's other graphs are; "kept": those of an earlier run are.
        max_grad_norm: largest norm of the gradient, None for no clipping.
    """

    path: str
    compiled: Compiled
    max_grad_norm: float | None

    def __call__(self, minibatches: Minibatch) -> None:
        """Take the steps: fields are ``[M, B, ...]``."""
        ...

    def outdated(self, minibatches: Minibatch) -> str | None:
        """Return why it does not take these steps as the eager update would, None where it does."""
        ...

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return the context in which the policy is evaluated between the steps."""
        ...


class Objective(nn.Module):
    """A loss as a module around the one that it belongs to, whose tensors are its own.

    Args:
        module: what the loss reads parameters, buffers and attributes of.
        loss: from this rank's rows of a minibatch to its share of the loss, a scalar; or of
            several.
    """

    def __init__(self, module: nn.Module, loss: Callable[[Minibatch], Any]) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, *minibatch: Tensor) -> Any:
        """Return the loss of a minibatch's tensors ``[B, ...]``."""
        return self.loss(Minibatch(*minibatch))


class EagerUpdate:
    """The plain path: autograd, one flat all-reduce, any optimizer.

    ``max_grad_norm`` None leaves the gradient as it is.
    """

    path = "eager"
    compiled: Compiled = False

    def __init__(
        self,
        loss: Callable[[Minibatch], Tensor],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        self.loss, self.optimizer, self.max_grad_norm = loss, optimizer, max_grad_norm

    def __call__(self, minibatches: Minibatch) -> None:
        """Take the steps: fields are ``[M, B, ...]``."""
        for minibatch in map(Minibatch, *(field.unbind() for field in minibatches)):
            self._step(minibatch)

    def outdated(self, minibatches: Minibatch) -> str | None:
        """Return None: everything is read at each step."""
        return None

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return a context in which nothing is different."""
        return nullcontext()

    def _step(self, minibatch: Minibatch) -> None:
        learning = _learning(self.optimizer)  # anew: a callback may freeze some, or add a group
        # Not `backward`: DDP's hooks would average what is already the share of a global mean.
        gradients = torch.autograd.grad(
            self.loss(minibatch), learning, allow_unused=True, materialize_grads=True
        )
        gradients = _all_sum(gradients)
        if self.max_grad_norm is not None:
            factor = clip_factor(gradients, self.max_grad_norm)
            gradients = [gradient * factor for gradient in gradients]
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()


def _learning(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _all_sum(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Sum tensors over ranks in one call."""
    if world_size() == 1:
        return tensors
    flat = all_sum(torch.cat([t.flatten() for t in tensors]))
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def make_paths(
    module: OnPolicyModule, rollout: Rollout, segment: Segment, sizes: Sizes, first: bool
) -> tuple[Update, ActingFactory | None]:
    """Choose how a run updates and acts, for rollouts like this one: the fit's first or later ones.

    What is unusual is said, what sharing environments costs at the first.
    """
    if first and sizes.shared:
        numbers = sum(p.numel() for p in _learning(module._optimizer))
        tell_cost(rollout, sizes, torch.zeros(numbers, device=module.device))
    acting: dict[Compiled, ActingFactory | None] = {}  # made while the update's compilers work

    def start_acting(compiled: Compiled) -> None:
        acting[compiled] = make_acting(module, rollout, compiled=compiled)

    update = make_update(module, segment, sizes, start_acting)
    return update, acting.get(update.compiled)


def make_update(
    module: OnPolicyModule, segment: Segment, sizes: Sizes, meanwhile: Callable[[Compiled], None]
) -> Update:
    """Choose how a run updates, see `choose_path`, for minibatches like the segment's first."""
    budget = getattr(module.trainer.datamodule, "budget", None)  # type: ignore[attr-defined]
    iterations = None
    if budget is not None and budget.iterations(sizes.rows) is not None:
        iterations = budget.iterations_left(module.counters, sizes.rows)
    return choose_path(
        module,
        module.loss,
        module.optimizers(use_pl_optimizer=False),  # type: ignore[arg-type]
        max_grad_norm=module.max_grad_norm,
        compile=module.compile_update,
        optimizer_steps=iterations and iterations * sizes.minibatches * sizes.epochs,
        example=segment.first_minibatch(),
        meanwhile=meanwhile,
    )


def as_it_is_now(module: OnPolicyModule, update: Update, minibatches: Minibatch) -> Update:
    """Return the update, or an eager one where it would not do what the loss does any more."""
    optimizer: Any = module.optimizers(use_pl_optimizer=False)
    if loop.has_finetuning(module):
        checks.thawed(module, optimizer)
    reason = update.outdated(minibatches)
    if update.max_grad_norm != module.max_grad_norm:
        reason = "max_grad_norm has changed"
    if reason is None:
        return update
    if update.path != "eager":
        _log.warning("update: eager from here on, for %s", reason)
    return EagerUpdate(module.loss, optimizer, module.max_grad_norm)


def choose_path(
    module: nn.Module,
    loss: Callable[[Minibatch], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float | None,
    compile: bool | str,
    optimizer_steps: int | None,
    example: Minibatch,
    meanwhile: Callable[[Compiled], None] = lambda compiled: None,
) -> Update:
    """Choose the path of a run and say so.

    Args:
        module: that the loss belongs to, see `Objective`.
        compile: True for a compiled graph, ``"trace"`` for a traced one, False for neither;
            ``"auto"`` takes a compiled one where that is ready, or the run long enough to repay
            the compilation, and falls back where a path does not work.
        optimizer_steps: of the whole run, None where only the run can tell.
        example: a minibatch ``[B, ...]`` to trace for.
        meanwhile: called with whether graphs are compiled, see `Update`, while compilers work.

    Raises:
        ConfigurationError: ``compile`` is True or ``"trace"`` and this run cannot take that path.
    """
    eager = EagerUpdate(loss, optimizer, max_grad_norm)
    if compile is False:
        _log.info("update: eager (compile=false)")
        return eager
    fast, why_not = _fast_path(optimizer)
    if fast is None:
        _refuse_unless_auto(compile, why_not)
        _log.info("update: eager (%s)", why_not)
        return eager
    started = time.perf_counter()
    update, why_not = fast.make_update(Objective(module, loss), optimizer, max_grad_norm, example)
    if update is None:
        _refuse_unless_auto(compile, why_not)
        _log.warning("update: eager, for tracing failed: %s", why_not)
        return eager
    device = example.observations.device
    compiled = compile is True
    if compile == "auto":
        compiled = fast.worth_compiling(update, optimizer_steps, device)
    if compiled:
        tried = time.perf_counter()
        failed = fast.compile_update(update, example, compiled, lambda: meanwhile(compiled))
        if failed:
            _refuse_unless_auto(compile, failed, instead="trace")
            lost = time.perf_counter() - tried
            started += lost
            _log.warning("update: compiling failed: %s (after %.1f s)", failed, lost)
    if update.path == "traced":
        meanwhile(False)
    seconds = time.perf_counter() - started
    per_step = 1000 * update.step_seconds
    _log.info("update: %s in %.1f s, %.2f ms a step", update.path, seconds, per_step)
    return update


def _refuse_unless_auto(compile: bool | str, reason: str, instead: str = "false") -> None:
    if compile != "auto":
        raise ConfigurationError(
            f"compile={str(compile).lower()} failed: {reason}; use compile={instead}"
        )


def make_acting(
    module: PolicyModule, rollout: Rollout, *, compiled: Compiled
) -> ActingFactory | None:
    """Return how a policy acts as a graph in rollouts like this one; None where it acts as it is.

    Args:
        compiled: see `Update`.
    """
    by = "act" if module.observation_normalizer is None else "act_as_shown"
    if getattr(type(module), by) is not getattr(PolicyModule, by):  # the user's own
        return None
    from ppo1_lightning import fast

    observations = torch.cat([rollout.observations, rollout.observations[-1:]])
    noise = module.distribution.noise(*rollout.rewards.shape, generator=torch.Generator())
    state = module.initial_state(rollout.rewards.shape[1])
    starts = torch.zeros(observations.shape[:2], dtype=torch.bool, device=observations.device)
    likewise = observations, noise, module.pools, state, starts
    acting, reason = fast.make_acting(
        module.policy, module.distribution, *likewise, compiled=compiled
    )
    if acting is None:
        _log.warning("acting: as a module: %s", reason)
    return acting


def give_own_memory(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Move parameters and moments out of flat vectors: where they lie decides how sums round."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
        state = optimizer.state.get(parameter, {})
        state.update({name: tensor.clone() for name, tensor in state.items()})


def _fast_path(optimizer: torch.optim.Optimizer) -> tuple[Any, str]:
    """Return the folder of the fast path, or None and why it is not for this optimizer."""
    try:
        from ppo1_lightning import fast
    except ImportError:
        return None, "the package's folder `fast` is missing"
    why_not = fast.unsupported(optimizer)
    return (None, f"a graph {why_not}") if why_not else (fast, "")
