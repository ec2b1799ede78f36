"""What Lightning does for a module that it optimises by itself, done here for each iteration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppo1_lightning.errors import ConfigurationError

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.on_policy import OnPolicyModule
    from ppo1_lightning.algorithms.policy_module import PolicyModule


def count_iteration(module: OnPolicyModule) -> None:
    """Let Lightning count an iteration as a step, and step the schedulers.

    Raises:
        ConfigurationError: one of them needs a metric.
    """
    # Lightning counts `global_step`, and so triggers checkpoints, by steps of its wrapper: an
    # optimizer without gradients changes nothing.
    optimizer, wrapper = (cast(Any, module.optimizers(use_pl_optimizer=w)) for w in (False, True))
    optimizer.zero_grad()
    wrapper.step()
    _step_schedulers(module)


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


def _step_schedulers(module: OnPolicyModule) -> None:
    """Step the schedulers of the user's `configure_optimizers`.

    An iteration is a scheduler's step and its epoch alike: Lightning's epoch may be the whole run.
    """
    for config in module.trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau):  # Lightning drops what it monitors
            raise ConfigurationError(
                "configure_optimizers returned a ReduceLROnPlateau, expected one that needs "
                "no metric; step that one in a callback, by a number of trainer.callback_metrics"
            )
        module.lr_scheduler_step(config.scheduler, None)


def evaluation_is_due(module: PolicyModule) -> bool:
    """Tell whether an evaluation comes after this iteration of a fit and has not been yet."""
    trainer, iterations = module.trainer, module.counters.iterations
    fitting = trainer.state.fn == TrainerFn.FITTING and trainer.enable_validation
    if not fitting or trainer.check_val_every_n_epoch is not None:
        return False
    due = trainer.should_stop or iterations % trainer.val_check_batch == 0  # type: ignore[attr-defined]
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
    for logger in module.trainer.loggers:
        log = logger.log_metrics
        original = log.args[0] if isinstance(log, _OverEnvSteps) else log
        logger.log_metrics = _OverEnvSteps(_log_at, original, module)  # type: ignore[method-assign]


class _OverEnvSteps(functools.partial[None]):
    """Tells what `log_over_env_steps` has put in a logger's place from the logger's own."""


def _log_at(
    log: Callable[..., None],
    module: OnPolicyModule,
    metrics: Mapping[str, Any],
    step: int | None = None,
) -> None:
    """Write a row at the run's environment steps, whatever step Lightning counts."""
    log(metrics, step=module.counters.env_steps)
