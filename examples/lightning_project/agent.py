"""This project's LightningModule: PPO with an auxiliary loss and a metric of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppo1_lightning import PPO
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.segment import Minibatch


class Agent(PPO):
    """PPO that keeps its logits small.

    Args:
        logit_penalty: weight of their mean square.
        arguments: of `PPO`.
    """

    def __init__(self, *arguments: Any, logit_penalty: float = 1e-4, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logit_penalty = logit_penalty

    def loss(self, batch: Minibatch) -> Tensor:
        """Return PPO's loss and the penalty; weights make sums the means over all devices' rows."""
        logits, _ = self.outputs(batch)
        squares = (batch.weights * logits.square().sum(-1)).sum()
        return super().loss(batch) + self.logit_penalty * squares

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Learn from a rollout, and log what it paid."""
        super().training_step(rollout, batch_idx)
        self.log("reward_mean", rollout.rewards[rollout.valid].mean(), batch_size=1, sync_dist=True)
