"""How often a gradient is longer than 0.5, by the network: ``python -m benchmarks.clipped``.

On HalfCheetah with ppo1's values and ppo2's ``max_grad_norm``, the plain path, 51,200 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from unittest import mock

import torch
from lightning import Trainer
from rich.table import Table
from torch import Tensor

from benchmarks.processes import console
from ppo1_lightning import PPO, MlpPolicy, RolloutDataModule
from ppo1_lightning.algorithms import update
from ppo1_lightning.optimizers import clip_factor

LIMIT = 0.5
WIDTHS, DEPTHS = (64, 256), (2, 4)
STEPS = 51_200


def factors(width: int, depth: int) -> Tensor:
    """Return what each minibatch's gradient was multiplied by."""
    seen: list[Tensor] = []

    def clip(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
        seen.append(clip_factor(gradients, max_norm))
        return seen[-1]

    policy = partial(MlpPolicy, hidden_size=width, num_layers=depth)
    module = PPO(policy, mpi_workers=1, max_grad_norm=LIMIT, compile=False, seed=0)
    data = RolloutDataModule("HalfCheetah-v4", num_envs=8, num_steps=256, total_steps=STEPS)
    trainer = Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with mock.patch.object(update, "clip_factor", clip):
        trainer.fit(module, data)
    return torch.stack(seen)


def main() -> None:
    """Print a row for each network."""
    table = Table("width", "layers", "clipped", "median norm of those", "minibatches")
    for width, depth in product(WIDTHS, DEPTHS):
        found = factors(width, depth)
        clipped = found[found < 1]
        norm = f"{LIMIT / clipped.median():.2f}" if len(clipped) else "-"
        share = f"{100 * len(clipped) / len(found):.1f} %"
        table.add_row(str(width), str(depth), share, norm, str(len(found)))
    console.print(table)


if __name__ == "__main__":
    main()
