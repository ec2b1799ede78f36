# pyright: reportMissingImports=false
"""sb3-contrib without velocities: ``python -m benchmarks.peers.no_velocity TASK SEED``.

In the virtual environment of sb3, see `benchmarks.setup_peers`. Sizes and values are those of RL
Zoo's ``ppo_lstm.yml``; it prints the mean return of the last 100 training episodes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformObservation
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env


def linear(start: float) -> Callable[[float], float]:
    """Return a schedule from ``start`` to 0."""
    return lambda left: left * start


TASKS: dict[str, tuple[str, list[int], int, int, dict[str, Any]]] = {
    "cartpole": (
        "CartPole-v1",
        [0, 2],
        8,
        100_000,
        {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "learning_rate": linear(0.001),
            "clip_range": linear(0.2),
        },
    ),
    "pendulum": (
        "Pendulum-v1",
        [0, 1],
        4,
        100_000,
        {
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
    ),
}


def main() -> None:
    task, seed = sys.argv[1], int(sys.argv[2])
    name, columns, num_envs, steps, options = TASKS[task]
    torch.set_num_threads(1)

    def make() -> gymnasium.Env[Any, Any]:
        env = gymnasium.make(name)
        space: Any = env.observation_space
        seen = Box(space.low[columns], space.high[columns])
        return TransformObservation(env, lambda observation: observation[columns], seen)

    model = RecurrentPPO("MlpLstmPolicy", make_vec_env(make, num_envs), seed=seed, **options)
    model.learn(steps)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(json.dumps({"task": task, "seed": seed, "return": sum(returns) / len(returns)}))


if __name__ == "__main__":
    main()
