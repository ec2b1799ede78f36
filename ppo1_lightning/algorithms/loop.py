"""What Lightning does for a module that it optimises by itself, done here for each iteration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer

from ppo1_lightning.distributed import fail_together
from ppo1_lightning.optimizers import make_optimizer

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.on_policy import OnPolicyModule
    from ppo1_lightning.algorithms.policy_module import PolicyModule


def count_iteration(module: OnPolicyModule) -> None:
    """Let Lightning count an iteration as a step, and step the schedulers.

    An iteration is a scheduler's step and its epoch alike: Lightning's epoch may be the whole run.
    """
    # Lightning counts `global_step`, and so triggers checkpoints, by steps of its wrapper: an
    # optimizer without gradients changes nothing.
    optimizer, wrapper = (cast(Any, module.optimizers(use_pl_optimizer=w)) for w in (False, True))
    optimizer.zero_grad()
    wrapper.step()
    for config in module.trainer.lr_scheduler_configs:
        module.lr_scheduler_step(config.scheduler, None)


def for_the_optimizer(module: OnPolicyModule) -> list[tuple[str, nn.Parameter]]:
    """Return all named parameters, without those that a `BaseFinetuning` adds when it thaws them.

    It ignores the learning rate that they are to have where the optimizer holds them already.
    """
    named = module.named_parameters()
    left = has_finetuning(module)
    return [(name, parameter) for name, parameter in named if parameter.requires_grad or not left]


def new_optimizer(module: OnPolicyModule) -> Optimizer:
    """Return an optimizer, without names of parameters where a `BaseFinetuning` adds some.

    It adds them without, and PyTorch takes no group without names beside one with.

    Raises:
        ConfigurationError: the factory does not take what it was given.
    """
    arguments = module.optimizer_factory, module.learning_parameters(), module.learning_rate
    optimizer = fail_together(lambda: make_optimizer(*arguments), module.device)
    if has_finetuning(module):
        for group in optimizer.param_groups:
            group.pop("param_names", None)
    return optimizer


def has_finetuning(module: OnPolicyModule) -> bool:
    """Tell whether a callback of the run freezes parameters and adds them when it thaws them."""
    callbacks = getattr(module._trainer, "callbacks", [])
    return any(isinstance(callback, BaseFinetuning) for callback in callbacks)


def ask_callbacks(module: OnPolicyModule) -> None:
    """Let callbacks look at an iteration that only look at epochs, or at automatic optimization."""
    trainer: Any = module.trainer
    if module.counters.episodes:  # before, there is no mean return
        for callback in trainer.early_stopping_callbacks:  # a run may be a single epoch
            callback.on_train_epoch_end(trainer, module)
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "_train_time_interval", None) is not None:
            callback.on_train_batch_end(trainer, _AUTOMATIC, None, None, 0)


_AUTOMATIC: Any = SimpleNamespace(automatic_optimization=True)
"""In the module's place: of others, `ModelCheckpoint` forgets its time interval."""


def evaluation_is_due(module: PolicyModule) -> bool:
    """Tell whether an evaluation comes after this iteration of a fit and has not been yet."""
    trainer, iterations = module.trainer, module.counters.iterations
    fitting = trainer.state.fn == TrainerFn.FITTING and trainer.enable_validation
    if not fitting or trainer.check_val_every_n_epoch is not None:
        return False
    every = trainer.val_check_batch  # type: ignore[attr-defined]  # None where it is by the clock
    due = trainer.should_stop or (every is not None and iterations % every == 0)
    return due and 0 < iterations != module.evaluated_in


def make_up_evaluation(module: OnPolicyModule) -> None:
    """Run the evaluation that the run was stopped before, as Lightning's loop does after a batch.

    Its rows are those that it would have had: nothing has been trained since.
    """
    trainer = module.trainer
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def log_over_env_steps(module: OnPolicyModule) -> None:
    """Let all rows of the Trainer's loggers, callbacks' too, stand over environment steps."""
    log_over_lightnings_steps(module)  # as the module of another fit may have left it
    for logger in module.trainer.loggers:
        log = functools.partial(_log_at, logger.log_metrics, module)
        logger.log_metrics = log  # type: ignore[method-assign]


def log_over_lightnings_steps(module: OnPolicyModule) -> None:
    """Give the loggers back as they were."""
    for logger in module.trainer.loggers:
        log = logger.log_metrics
        if isinstance(log, functools.partial) and log.func is _log_at:
            logger.log_metrics = log.args[0]  # type: ignore[method-assign]


def _log_at(
    log: Callable[..., None],
    module: OnPolicyModule,
    metrics: Mapping[str, Any],
    step: int | None = None,
) -> None:
    """Write a row at the run's environment steps, unless somebody has chosen a step of his own."""
    lightnings = module.trainer.fit_loop.epoch_loop._batches_that_stepped
    counted = step is None or step == lightnings
    log(metrics, step=module.counters.env_steps if counted else step)
