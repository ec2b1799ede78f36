"""How often a gradient is longer than 0.5, by the network: ``python -m benchmarks.clipped``.

With ppo2's ``max_grad_norm``, the plain path, 51,200 steps: MLPs on HalfCheetah with ppo1's values
for MuJoCo, CNNs on Pong with those for Atari.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from lightning import Trainer
from rich.table import Table
from torch import Tensor
from torch.nn.utils import get_total_norm

from benchmarks.processes import console
from ppo1_lightning import PPO, CnnPolicy, MlpPolicy, RolloutDataModule
from ppo1_lightning.algorithms import update
from ppo1_lightning.optimizers import clip_factor
from ppo1_lightning.simulators import EnvironmentSpec

LIMIT = 0.5
STEPS = 51_200
MLPS = ((64, 2), (64, 4), (256, 2), (256, 4), (512, 2), (1024, 2))
"""Width and hidden layers."""

MUJOCO: dict[str, Any] = {"mpi_workers": 1}
ATARI: dict[str, Any] = {
    "minibatch_size": 256,
    "update_epochs": 3,
    "clip_coef": 0.1,
    "ent_coef": 0.01,
    "learning_rate": 2.5e-4,
}
PONG = {"stack_num": 4, "frame_skip": 4, "episodic_life": True, "reward_clip": True}


def norms(policy: Any, environments: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Return the norm of each minibatch's gradient before it was clipped."""
    seen: list[Tensor] = []

    def clip(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
        seen.append(get_total_norm(gradients))
        return clip_factor(gradients, max_norm)

    module = PPO(policy, max_grad_norm=LIMIT, compile=False, seed=0, **options)
    data = RolloutDataModule(**environments, total_steps=STEPS)
    trainer = Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with mock.patch.object(update, "clip_factor", clip):
        trainer.fit(module, data)
    return torch.stack(seen)


def main() -> None:
    """Print a row for each network."""
    table = Table("network", "clipped", "median norm", "minibatches")
    cheetah = {"env": "HalfCheetah-v4", "num_envs": 8, "num_steps": 256}
    pong = {"env": EnvironmentSpec("Pong-v5", options=PONG), "num_envs": 8, "num_steps": 128}
    cases: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
        *(
            (f"{d} x {w}", partial(MlpPolicy, hidden_size=w, num_layers=d), cheetah, MUJOCO)
            for w, d in MLPS
        ),
        *((f"{s} CNN", partial(CnnPolicy, size=s), pong, ATARI) for s in ("small", "large")),
    ]
    for name, policy, environments, options in cases:
        found = norms(policy, environments, options)
        share = f"{100 * (found > LIMIT).float().mean():.1f} %"
        table.add_row(name, share, f"{found.median():.2f}", str(len(found)))
    console.print(table)


if __name__ == "__main__":
    main()
