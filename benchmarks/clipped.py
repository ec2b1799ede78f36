"""How often a gradient is longer than 0.5, by the network: ``python -m benchmarks.clipped``.

With ppo2's ``max_grad_norm``, the plain path, 51,200 steps at a constant learning rate: MLPs on
HalfCheetah by its preset, CNNs on Pong by the paper's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from unittest import mock

import torch
from lightning import Trainer
from rich.table import Table
from torch import Tensor
from torch.nn.utils import get_total_norm

from benchmarks.bare import compose_words, parts_of
from benchmarks.processes import console
from ppo1_lightning.algorithms import update
from ppo1_lightning.optimizers import clip_factor

LIMIT = 0.5
STEPS = 51_200
COMMON = (f"algo.max_grad_norm={LIMIT}", "algo.anneal=[]", "compile=false", "seed=0")
MLPS = ((64, 2), (64, 4), (256, 2), (256, 4), (512, 2), (1024, 2))
"""Width and hidden layers."""

NETWORKS = {
    **{
        f"{d} x {w}": ("env=halfcheetah", f"policy.hidden_size={w}", f"policy.num_layers={d}")
        for w, d in MLPS
    },
    **{
        f"{size} CNN": ("env=pong", "algo=paper_atari", f"policy=cnn_{size}")
        for size in ("small", "large")
    },
}
"""What is told, and the words of our command line."""


def norms(*words: str) -> Tensor:
    """Return the norm of each minibatch's gradient before it was clipped."""
    seen: list[Tensor] = []

    def clip(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
        seen.append(get_total_norm(gradients))
        return clip_factor(gradients, max_norm)

    module, data = parts_of(compose_words(*words, *COMMON, f"total_steps={STEPS}"))
    trainer = Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with mock.patch.object(update, "clip_factor", clip):
        trainer.fit(module, data)
    return torch.stack(seen)


def main() -> None:
    """Print a row for each network."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    table = Table("network", "clipped", "median norm", "minibatches")
    for name, words in NETWORKS.items():
        found = norms(*words)
        share = f"{100 * (found > LIMIT).float().mean():.1f} %"
        table.add_row(name, share, f"{found.median():.2f}", str(len(found)))
    console.print(table)


if __name__ == "__main__":
    main()
