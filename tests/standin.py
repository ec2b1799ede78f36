"""A module and its data as the callbacks see them: one batch, one optimizer step, one score.

The tests' own, so that they check the callbacks and not the algorithm. It keeps PPO's side of the
bargain: counters, metrics, loggers, a monitored metric, the end of the run by its own counters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ppo1_lightning.rollouts.budget import Budget, Counters

STEPS = 10
"""Environment steps of one iteration."""


class StandIn(LightningModule):
    """Adds 1 to its only parameter in each iteration, and logs the next of ``scores``.

    Args:
        scores: score of each iteration, None for one that logs none; the last one repeats.
        during_update: called with the iteration (from 0) in the middle of each update.
    """

    def __init__(
        self,
        scores: Sequence[float | None] = (0.0,),
        during_update: Callable[[int], object] = lambda iteration: None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.scores, self.during_update = scores, during_update
        self.counters = Counters()
        self.metrics: dict[str, float] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_train_start(self) -> None:
        self._stop_when_spent()

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        score = self.scores[min(self.counters.iterations, len(self.scores) - 1)]
        optimizer.zero_grad()
        self.manual_backward(-0.5 * self.weight)
        optimizer.optimizer.step()
        self.during_update(self.counters.iterations)
        optimizer.optimizer.zero_grad()
        self.manual_backward(-0.5 * self.weight)
        optimizer.step()
        self.counters.iterations += 1
        self.counters.env_steps += STEPS
        if score is not None:
            self.log("episode_return_mean", score, logger=False)
        self.metrics = {
            "episode_return_mean": math.nan if score is None else score,
            "steps_per_second": 1234.4,
        }
        for logger in self.loggers:
            logger.log_metrics(self.metrics, step=self.counters.env_steps)
        self._stop_when_spent()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["counters"] = self.counters.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.counters = Counters(**checkpoint["counters"])

    def _stop_when_spent(self) -> None:
        datamodule: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if datamodule.budget.fraction_spent(self.counters) >= 1:
            self.trainer.should_stop = True


class _Batches(IterableDataset[Tensor]):
    def __init__(self, length: int, collect: Callable[[int], object]) -> None:
        self.length, self.collect = length, collect

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self.length):
            self.collect(index)
            yield torch.zeros(1)


class StandInData(LightningDataModule):
    """``iterations`` batches, or many and the budget ends the run if ``known_length`` is False."""

    def __init__(
        self,
        iterations: int,
        known_length: bool = True,
        collect: Callable[[int], object] = lambda index: None,
    ) -> None:
        super().__init__()
        self.budget = Budget(total_iterations=iterations)
        self.length = iterations if known_length else 10**6
        self.collect = collect

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(_Batches(self.length, self.collect), batch_size=None)


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    """Return a silent trainer of one CPU device."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
    }
    return Trainer(callbacks=list(callbacks), **(defaults | options))
