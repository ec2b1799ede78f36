"""Tells an Optuna study how a run is going, and ends the run when the study's pruner says so."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna import load_study
from optuna.pruners import BasePruner
from optuna.trial import Trial

from ppo1_lightning.errors import DivergenceError, check_integer

ENDED = "ended"
"""User attribute of a trial whose run was of no use to the end: ``pruned`` or ``diverged``."""


class Pruning(Callback):
    """Reports ``metric`` to a trial as the budget is spent, and stops all ranks together.

    It finds the trial through the study's storage, so that it works in whatever process training
    runs; how a run has ended is the trial's user attribute `ENDED`.

    Args:
        storage, study_name, trial_id: of the trial.
        pruner: decides.
        metric: key of ``module.metrics``; not reported while it is NaN.
        reports: how many, at equal shares of the budget.
        first_report: number of the first one, for trials of several runs.
    """

    def __init__(
        self,
        storage: str,
        study_name: str,
        trial_id: int,
        pruner: BasePruner,
        *,
        metric: str,
        reports: int = 10,
        first_report: int = 0,
    ) -> None:
        super().__init__()
        self.reports = check_integer("reports", reports, at_least=1)
        self.metric, self.first_report = metric, first_report
        self._study = {"study_name": study_name, "storage": storage, "pruner": pruner}
        self._trial_id = trial_id
        self._done = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report when the next share of the budget is spent."""
        module: Any = pl_module
        budget = trainer.datamodule.budget  # type: ignore[attr-defined]
        due = int(budget.fraction_spent(module.counters) * self.reports)
        if due <= self._done:
            return
        self._done = due
        value = module.metrics.get(self.metric, math.nan)
        prune = trainer.is_global_zero and not math.isnan(value) and self._should_prune(value)
        if trainer.strategy.reduce_boolean_decision(prune, all=False):
            trainer.should_stop = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the trial that it has diverged, which no exit status of a rank could."""
        diverged = isinstance(exception, DivergenceError)
        if diverged and (trainer.is_global_zero or not exception.on_all_ranks):
            self._trial().set_user_attr(ENDED, "diverged")

    def _should_prune(self, value: float) -> bool:
        trial = self._trial()
        trial.report(value, self.first_report + self._done)
        prune = trial.should_prune()
        if prune:
            trial.set_user_attr(ENDED, "pruned")
        return prune

    def _trial(self) -> Trial:
        return Trial(load_study(**self._study), self._trial_id)
