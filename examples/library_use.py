"""PPO inside plain Lightning: an own policy, an own loss, no Hydra.

python examples/library_use.py
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import Space
from lightning import Trainer
from torch import Tensor, nn

from ppo1_lightning import PPO, RolloutDataModule
from ppo1_lightning.policies.spaces import distribution_for
from ppo1_lightning.rollouts.segment import Minibatch


class ReluPolicy(nn.Module):
    """One shared hidden layer."""

    def __init__(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        super().__init__()
        assert observation_space.shape is not None
        self.trunk = nn.Linear(observation_space.shape[0], 128)
        self.action_head = nn.Linear(128, distribution_for(action_space).num_parameters)
        self.value_head = nn.Linear(128, 1)

    def forward(self, observation: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        features = self.trunk(observation).relu()
        return self.action_head(features), self.value_head(features).squeeze(-1), state


class SmallLogitsPPO(PPO):
    """PPO whose loss also keeps the logits small."""

    def loss(self, batch: Minibatch) -> Tensor:
        logits, _ = self.outputs(batch)
        penalty = (batch.weights * logits.square().sum(-1)).sum()
        return super().loss(batch) + 1e-4 * penalty


def main() -> None:
    """Train on CartPole for some seconds."""
    torch.set_num_threads(1)
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=128, total_steps=50_000)
    module = SmallLogitsPPO(ReluPolicy, minibatch_size=256, learning_rate=1e-3)
    Trainer(accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False).fit(
        module, data
    )
    print(f"mean return of the last 100 episodes: {module.episodes.return_mean:.0f}")


if __name__ == "__main__":
    main()
