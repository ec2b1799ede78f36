"""The cases: what each system trains on, the same sizes on all sides."""

from __future__ import annotations

CASES: dict[str, list[str]] = {
    "halfcheetah_8x256": ["env=halfcheetah"],
    "halfcheetah_1x2048": ["env=halfcheetah", "algo=ppo1_mujoco"],
    "cartpole": [
        "env=cartpole",
        "num_envs=8",
        "num_steps=32",
        "algo.minibatch_size=256",
        "algo.update_epochs=20",
    ],
    "atari": ["env=pong", "policy=cnn_large", "algo.update_epochs=4", "algo.minibatch_size=256"],
}
"""Arguments of our command line. MLPs are 2x64 tanh, Atari is Pong with the Nature network."""

COMMON = ["trainer.accelerator=cpu", "compile=true", "total_steps=1_000_000_000"]
"""Added to every case; a run ends when enough has been measured."""
