# pyright: reportMissingImports=false
"""sb3-contrib without velocities: ``python -m benchmarks.peers.no_velocity TASK SEED``.

In the virtual environment of sb3, see `benchmarks.setup_peers`. Sizes and values are those of RL
Zoo's ``ppo_lstm.yml``, which are those of its ``ppo.yml`` here but for the library's minibatches of
128; it prints the mean return of the last 100 training episodes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import gymnasium
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import TransformObservation
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.peers.zoo import VALUES, learn

TASKS = {
    "cartpole": ("CartPole-v1", [0, 2], 100_000),
    "pendulum": ("Pendulum-v1", [0, 1], 100_000),
    "mountaincarcontinuous": ("MountainCarContinuous-v0", [0], 20_000),
    "lunarlander": ("LunarLander-v3", [0, 1, 4, 6, 7], 1_000_000),
}
"""What is simulated, the columns that are shown, and RL Zoo's steps."""


def main() -> None:
    task, seed = sys.argv[1], int(sys.argv[2])
    name, columns, steps = TASKS[task]
    options = {**VALUES[name]}
    torch.set_num_threads(1)

    def make() -> gymnasium.Env[Any, Any]:
        env = gymnasium.make(name)
        space: Any = env.observation_space
        seen = Box(space.low[columns], space.high[columns])
        return TransformObservation(env, lambda observation: observation[columns], seen)

    envs = make_vec_env(make, options.pop("n_envs"))
    result = learn(RecurrentPPO, "MlpLstmPolicy", envs, seed, steps, options)
    print(json.dumps({"task": task, "seed": seed, **result}), flush=True)


if __name__ == "__main__":
    main()
