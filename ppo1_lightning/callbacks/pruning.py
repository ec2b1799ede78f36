"""Tells an Optuna study how a run is going, and ends the run when the study's pruner says so."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna import load_study
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import Trial

from ppo1_lightning.distributed import all_max
from ppo1_lightning.errors import DivergenceError, check_integer

PRUNED = "pruned"
"""User attribute of a trial that is to be pruned."""

DIVERGED = "diverged"
"""User attribute of a trial whose parameters are not finite any more."""


class Pruning(Callback):
    """Reports ``metric`` to a trial as the budget is spent, and stops all ranks together.

    It finds the trial through the study's storage, so that it works in whatever process training
    runs. A pruned run ends as one whose budget is spent; the trial then has the user attribute
    `PRUNED`.

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
        self._trial: Trial | None = None  # on rank zero
        self._done = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the trial."""
        if trainer.is_global_zero:
            self._trial = self._find_trial()

    def _find_trial(self) -> Trial:
        return Trial(load_study(**self._study, sampler=RandomSampler()), self._trial_id)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the trial that it has diverged, which no exit status of a rank could."""
        if not isinstance(exception, DivergenceError):
            return
        if trainer.is_global_zero or not exception.on_all_ranks:
            self._find_trial().set_user_attr(DIVERGED, True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report when the next share of the budget is spent."""
        module, budget = pl_module, trainer.datamodule.budget  # type: ignore[attr-defined]
        due = int(budget.fraction_spent(module.counters) * self.reports)
        if due <= self._done:
            return
        self._done = due
        value = module.metrics.get(self.metric, math.nan)  # type: ignore[union-attr]
        if all_max(float(self._should_prune(value)), trainer.strategy.root_device):
            trainer.should_stop = True

    def _should_prune(self, value: float) -> bool:
        if self._trial is None or math.isnan(value):
            return False
        self._trial.report(value, self.first_report + self._done)
        prune = self._trial.should_prune()
        if prune:
            self._trial.set_user_attr(PRUNED, True)
        return prune
