"""Runs of an update alone, on minibatches of random numbers: for the tests of its paths."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from ppo1_lightning import PPO, MlpPolicy
from ppo1_lightning.algorithms.paths import choose_path
from ppo1_lightning.optimizers import TensorFlowAdam
from ppo1_lightning.policies import PolicyFactory
from ppo1_lightning.rollouts.segment import Minibatch

OBSERVATIONS, ACTIONS = Box(-1, 1, (6,)), Discrete(3)
LONG, SHORT = 10**9, 1  # days of steps, and less than a second

# Optimizer and max_grad_norm; gradients are longer than 0.05.
CASES = {"torch": (torch.optim.Adam, None), "tensorflow": (TensorFlowAdam, 0.05)}


def small_mlp(observation_space: Any, action_space: Any) -> nn.Module:
    return MlpPolicy(observation_space, action_space, hidden_size=8, num_layers=1)


class Run:
    """A policy, its loss and its optimizer; a path is taken with `take`."""

    def __init__(self, case: str, policy: PolicyFactory = small_mlp) -> None:
        kind, self.max_grad_norm = CASES[case]
        self.ppo = PPO(
            policy,
            ent_coef=0.01,
            value_clip=0.3,
            observation_space=OBSERVATIONS,
            action_space=ACTIONS,
        )
        self.ppo.configure_model()
        self.policy = self.ppo.policy
        self.optimizer = kind(self.policy.named_parameters(), lr=1e-3, eps=1e-5)
        self.update: Any = None
        self.told = ""

    def take(self, path: str, optimizer_steps: int | None = LONG) -> Any:
        self.update, self.told = choose_path(
            self.ppo,
            self.ppo.loss,
            self.optimizer,
            max_grad_norm=self.max_grad_norm,
            compile={"eager": False, "traced": "trace", "compiled": True}.get(path, path),
            optimizer_steps=optimizer_steps,
            example=minibatch(0),
        )
        return self.update

    def steps(self, numbers: range) -> Tensor:
        """Take steps; learning rate, clip range and normaliser change as in a real run."""
        for t in numbers:
            self.optimizer.param_groups[0]["lr"] = 1e-3 * (1 - t / 40)
            if t % 8 == 0 and isinstance(self.policy, MlpPolicy):
                assert self.policy.observation_normalizer is not None
                self.policy.observation_normalizer.update(3 * minibatch(t).observations + 1)
            minibatches = Minibatch(*(field[None] for field in minibatch(t)))
            self.ppo.now.clip_coef.fill_(0.2 * (1 - t / 40))
            self.update(minibatches)
        return self.parameters()

    def parameters(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()]).clone()

    def adam_steps(self) -> list[int]:
        return [int(state["step"]) for state in self.optimizer.state_dict()["state"].values()]


def minibatch(seed: int) -> Minibatch:
    stream = torch.Generator().manual_seed(seed)
    valid = torch.rand(16, generator=stream) > 0.2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream)

    return Minibatch(
        observations=normal(16, 6),
        actions=torch.randint(3, (16,), generator=stream),
        advantages=normal(16),
        returns=normal(16),
        old_values=normal(16),
        old_dist_params=normal(16, 3),
        old_log_probs=-1.1 + 0.2 * normal(16),
        weights=valid / valid.sum(),
        starts=torch.zeros(16, dtype=torch.bool),
        state=torch.zeros(16, 0),
    )


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return our own warnings."""
    records = [record for record in caplog.records if "ppo1" in record.name]
    return [record for record in records if record.levelno >= logging.WARNING]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
