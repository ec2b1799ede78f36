"""The cases: what each system trains on, the same sizes on all sides."""

from __future__ import annotations

CASES: dict[str, list[str]] = {
    "halfcheetah_8x256": ["env=halfcheetah"],
    "halfcheetah_1x2048": ["env=halfcheetah", "algo=ppo1_mujoco"],
    "cartpole": [
        "env=cartpole",
        "algo=classic",
        "num_envs=8",
        "num_steps=32",
        "algo.minibatch_size=256",
        "algo.update_epochs=20",
    ],
    "atari": ["env=pong", "algo=paper_atari", "policy=cnn_large", "algo.update_epochs=4"],
    # Our preset's settings but for the rollout, which is that of SB3's defaults; MLPs 2x32.
    "trpo_halfcheetah": ["env=halfcheetah", "algo=trpo_mujoco", "num_steps=2048"],
    # SB3's defaults.
    "trpo_halfcheetah_sb3": [
        "env=halfcheetah",
        "algo=trpo_mujoco",
        "num_steps=2048",
        "policy.hidden_size=64",
        "algo.cg_iters=15",
        "algo.fisher_every=1",
        "algo.vf_iters=10",
        "algo.minibatch_size=128",
        "algo.gae_lambda=0.95",
    ],
    # LSTMs of 128 for policy and value, whose minibatches are of whole sequences.
    "memory_cartpole": [
        "env=cartpole",
        "algo=classic",
        "policy=mlp_lstm",
        "policy.num_layers=2",
        "num_envs=8",
        "num_steps=128",
    ],
    "memory_halfcheetah": [
        "env=halfcheetah",
        "policy=mlp_lstm",
        "policy.num_layers=2",
        "algo.minibatch_size=512",
        "algo.update_epochs=10",
    ],
    # CleanRL's sizes: the Nature network and an LSTM of 128, one frame.
    "lstm_atari": ["env=pong", "algo=cleanrl_atari", "policy=cnn_lstm", "frame_stack=1"],
    "trpo_cartpole": ["env=cartpole", "algo=trpo_classic", "num_envs=8", "num_steps=128"],
}
"""Arguments of our command line. MLPs are 2x64 tanh, Atari is Pong with the Nature network."""

SYSTEMS_OF = {
    "atari": ("ours", "ours_bf16", "bare", "sb3", "sheeprl", "cleanrl", "simulator", "rollout"),
    "trpo": ("ours", "sb3", "simulator"),
    "memory": ("ours", "sb3", "simulator"),
    "lstm": ("ours", "cleanrl", "simulator"),
}
"""By a case's first word: the systems that have its algorithm; where it is not here, all do."""

COMMON = ["trainer.accelerator=cpu", "compile=true", "total_steps=1_000_000_000"]
"""Added to every case; a run ends when enough has been measured."""
