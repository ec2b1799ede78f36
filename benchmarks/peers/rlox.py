# pyright: reportMissingImports=false, reportCallIssue=false
"""rlox's PPO, its data plane in Rust: ``python -m benchmarks.peers.rlox CASE``.

In its virtual environment, see `benchmarks.setup_peers`. Its own defaults with the sizes of the
case; CartPole is its own in Rust, HalfCheetah is Gymnasium's.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from rlox.algorithms.ppo import PPO
from rlox.callbacks import Callback

from benchmarks.measure import Measurement, emit, parse_case

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "halfcheetah_8x256": (
        "HalfCheetah-v4",
        {"n_envs": 8, "n_steps": 256, "batch_size": 64, "n_epochs": 10},
    ),
    "halfcheetah_1x2048": (
        "HalfCheetah-v4",
        {"n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10},
    ),
    "cartpole": ("CartPole-v1", {"n_envs": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 20}),
}


class Clock(Callback):
    """Notes the end of each iteration, and ends the run."""

    def __init__(self, measurement: Measurement, rows: int) -> None:
        super().__init__()
        self.measurement, self.rows, self.steps = measurement, rows, 0

    def on_training_start(self, **_: Any) -> None:
        self.measurement.begin()

    def on_step(self, **_: Any) -> bool:
        self.steps += self.rows
        return not self.measurement.tick(self.steps)


def main() -> None:
    arguments = parse_case([*CASES], __doc__, by_steps=True).parse_args()
    env_id, sizes = CASES[arguments.case]
    torch.set_num_threads(1)  # which is faster for MLPs
    measurement = Measurement(arguments.seconds, steps=arguments.steps)
    clock = Clock(measurement, sizes["n_envs"] * sizes["n_steps"])
    model = PPO(env_id, seed=0, callbacks=[clock], **sizes)
    model.train(10**9)
    emit(
        measurement.result(
            parameters=sum(p.numel() for p in model.policy.parameters()),
            versions={name: metadata.version(name) for name in ("rlox", "torch")},
        )
    )


if __name__ == "__main__":
    main()
