"""A rollout and an update of another library, and the same by this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import Trainer
from test_presets import compose
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo1_lightning import PPO, Rollout
from ppo1_lightning.rollouts.sizes import Sizes


class Replayed(PPO):
    """PPO that takes rows in the order in which the other library did, and keeps its estimates."""

    orders: list[Tensor]
    """For each iteration, rows ``[passes + 1, 1, minibatches, rows]``."""

    def minibatch_order(self, sizes: Sizes) -> Tensor:
        return self.orders[self.counters.iterations]

    def estimate_advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        self.estimates = super().estimate_advantages(rollout)
        return self.estimates


class Rollouts(IterableDataset[Rollout]):
    """What was recorded, in the place of a simulator."""

    def __init__(self, rollouts: Iterable[Rollout]) -> None:
        self.rollouts = list(rollouts)

    def __len__(self) -> int:
        return len(self.rollouts)

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self.rollouts)


def replayed(recipe: list[str], path: bool | str, observation: Any, action: Any) -> Replayed:
    """Return the module of a recipe's overrides for these spaces."""
    config = compose(*recipe)
    config.algo.compile = path
    config.algo._target_ = f"{__name__}.Replayed"
    module: Replayed = instantiate(
        config.algo,
        policy=instantiate(config.policy, _convert_="all"),
        observation_space=observation,
        action_space=action,
        _convert_="all",
    )
    module.configure_model()
    return module


def as_minibatches(orders: list[np.ndarray], size: int) -> Tensor:
    """Turn each pass's order of rows ``[B]`` into minibatches; nothing measures the last pass."""
    rows = torch.from_numpy(np.stack([*orders, orders[-1]]))
    return rows.view(len(rows), 1, -1, size)


def fit(module: PPO, rollouts: Iterable[Rollout], **settings: Any) -> None:
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "max_epochs": 1}
    Trainer(accelerator="cpu", **off, **settings).fit(module, Rollouts(rollouts))
