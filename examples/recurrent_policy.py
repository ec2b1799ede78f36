"""A policy of your own with memory: a linear recurrence instead of a GRU (docs/memory.md).

    python -m ppo1_lightning --config-dir conf env=cartpole policy=recurrent_policy

The state is a running average with a learned rate for each feature: ``s = a * s + (1 - a) * x``.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.policies import by_time


class LinearMemory(nn.Module):
    """Features of the observation and their running averages, for action and value.

    ``state_size`` above 0 is all that tells the algorithm that there is memory.
    """

    def __init__(
        self, observation_space: Space[Any], action_space: Space[Any], *, state_size: int = 32
    ) -> None:
        super().__init__()
        assert observation_space.shape is not None
        self.state_size = state_size
        self.encoder = nn.Linear(observation_space.shape[0], state_size)
        self.rate = nn.Parameter(torch.linspace(-3, 5, state_size))
        self.action_head = nn.Linear(2 * state_size, int(action_space.n))  # type: ignore[attr-defined]
        self.value_head = nn.Linear(2 * state_size, 1)

    def forward(
        self, observations: Tensor, state: Tensor, starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate L rows ``[L * B, ...]`` of B environments, with the state ``[B, S]`` before."""
        features = self.encoder(observations).tanh()
        rate, averages = self.rate.sigmoid(), []
        for row, begins in zip(by_time(features, state), by_time(starts, state), strict=True):
            state = state.masked_fill(begins.unsqueeze(-1), 0)  # forget the episode before
            state = rate * state + (1 - rate) * row
            averages.append(state)
        both = torch.cat([features, torch.cat(averages)], -1)
        return self.action_head(both), self.value_head(both).squeeze(-1), state
