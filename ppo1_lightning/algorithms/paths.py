"""Which path a run takes, and why: eager, traced or compiled, for its updates and for acting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from ppo1_lightning.algorithms import checks, loop
from ppo1_lightning.algorithms.policy_module import PolicyModule
from ppo1_lightning.algorithms.update import EagerUpdate, Objective, Update, learning
from ppo1_lightning.errors import ConfigurationError
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


def make_paths(
    module: OnPolicyModule, rollout: Rollout, segment: Segment, sizes: Sizes, first: bool
) -> tuple[Update, ActingFactory | None]:
    """Choose how a run updates and acts, for rollouts like this one: the fit's first or later ones.

    What is unusual is said, what sharing environments costs at the first.
    """
    if first and sizes.shared:
        numbers = sum(p.numel() for p in learning(module._optimizer))
        tell_cost(rollout, sizes, torch.zeros(numbers, device=module.device))
    acting: dict[Compiled, ActingFactory | None] = {}  # made while the update's compilers work

    def start_acting(compiled: Compiled) -> None:
        acting[compiled] = make_acting(module, rollout, compiled=compiled)

    update, told = _make_update(module, segment, sizes, start_acting)
    say = _log.info if first else _log.debug  # later ones are made as the first
    rank_zero_only(say)("update: %s%s", told, _told_start_up(module))
    return update, acting.get(update.compiled)


def _told_start_up(module: OnPolicyModule) -> str:
    """Return how long it took until the run began, in words; nothing where that is not known."""
    seconds = getattr(module._datamodule, "seconds_to_first_step", None)
    if seconds is None:
        return ""
    return f"; first environment step {seconds:.1f} s after the start"


def _make_update(
    module: OnPolicyModule, segment: Segment, sizes: Sizes, meanwhile: Callable[[Compiled], None]
) -> tuple[Update, str]:
    """Choose how a run updates, see `choose_path`, for minibatches like the segment's first."""
    budget = getattr(module._datamodule, "budget", None)
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
) -> tuple[Update, str]:
    """Choose the path of a run.

    Args:
        module: that the loss belongs to, see `Objective`.
        compile: True for a compiled graph, ``"trace"`` for a traced one, False for neither;
            ``"auto"`` takes a compiled one where that is ready, or the run long enough to repay
            the compilation, and falls back where a path does not work.
        optimizer_steps: of the whole run, None where only the run can tell.
        example: a minibatch ``[B, ...]`` to trace for.
        meanwhile: called with whether graphs are compiled, see `Update`, while compilers work.

    Returns:
        The update, and its path in words: why, or the seconds that making it and a step take.

    Raises:
        ConfigurationError: ``compile`` is True or ``"trace"`` and this run cannot take that path.
    """
    eager = EagerUpdate(loss, optimizer, max_grad_norm)
    if compile is False:
        return eager, "eager (compile=false)"
    fast, why_not = _fast_path(optimizer)
    if fast is None:
        _refuse_unless_auto(compile, why_not)
        return eager, f"eager ({why_not})"
    started = time.perf_counter()
    update, why_not = fast.make_update(Objective(module, loss), optimizer, max_grad_norm, example)
    if update is None:
        _refuse_unless_auto(compile, why_not)
        _log.warning("update: tracing failed: %s", why_not)
        return eager, "eager (tracing failed)"
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
    return update, f"{update.path} in {seconds:.1f} s, {1000 * update.step_seconds:.2f} ms a step"


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


def _fast_path(optimizer: torch.optim.Optimizer) -> tuple[Any, str]:
    """Return the folder of the fast path, or None and why it is not for this optimizer."""
    try:
        from ppo1_lightning import fast
    except ImportError:
        return None, "the package's folder `fast` is missing"
    why_not = fast.unsupported(optimizer)
    return (None, f"a graph {why_not}") if why_not else (fast, "")
