# pyright: reportMissingImports=false
"""Stable-Baselines3 with RL Zoo's values: ``python -m benchmarks.peers.zoo ENV SEED STEPS``.

In the virtual environment of sb3, see `benchmarks.setup_peers`. Sizes and values are those of RL
Zoo's ``ppo.yml``; where it has none, those of the nearest kind that it has: its MiniGrid's for all
of MiniGrid, its commonest of MuJoCo for dm_control, its Atari's for Procgen. It prints the mean
return of the last 100 training episodes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize


def linear(start: float) -> Callable[[float], float]:
    """Return a schedule from ``start`` to 0."""
    return lambda left: left * start


_LANDER = {
    "n_envs": 16,
    "n_steps": 1024,
    "batch_size": 64,
    "gae_lambda": 0.98,
    "gamma": 0.999,
    "n_epochs": 4,
    "ent_coef": 0.01,
}

VALUES: dict[str, dict[str, Any]] = {
    "Acrobot-v1": {
        "normalize": True,
        "n_envs": 16,
        "n_steps": 256,
        "gae_lambda": 0.94,
        "gamma": 0.99,
        "n_epochs": 4,
    },
    "BipedalWalker-v3": {
        "normalize": True,
        "n_envs": 32,
        "n_steps": 2048,
        "batch_size": 64,
        "gae_lambda": 0.95,
        "gamma": 0.999,
        "n_epochs": 10,
        "learning_rate": 3e-4,
        "clip_range": 0.18,
    },
    "CartPole-v1": {
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "learning_rate": linear(0.001),
        "clip_range": linear(0.2),
    },
    "LunarLander-v3": _LANDER,
    "LunarLanderContinuous-v3": _LANDER,
    "MountainCar-v0": {
        "normalize": True,
        "n_envs": 16,
        "n_steps": 16,
        "gae_lambda": 0.98,
        "gamma": 0.99,
        "n_epochs": 4,
    },
    "MountainCarContinuous-v0": {
        "normalize": True,
        "n_envs": 1,
        "batch_size": 256,
        "n_steps": 8,
        "gamma": 0.9999,
        "learning_rate": 7.77e-05,
        "ent_coef": 0.00429,
        "clip_range": 0.1,
        "n_epochs": 10,
        "gae_lambda": 0.9,
        "max_grad_norm": 5,
        "vf_coef": 0.19,
        "use_sde": True,
        "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False},
    },
    "Pendulum-v1": {
        "n_envs": 4,
        "n_steps": 1024,
        "gae_lambda": 0.95,
        "gamma": 0.9,
        "n_epochs": 10,
        "learning_rate": 1e-3,
        "clip_range": 0.2,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
}

TOY_TEXT = ("Taxi-v3", "FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Blackjack-v1")


KINDS: dict[str, dict[str, Any]] = {
    "MiniGrid": {
        "normalize": True,
        "n_envs": 8,
        "n_steps": 128,
        "batch_size": 64,
        "gae_lambda": 0.95,
        "gamma": 0.99,
        "n_epochs": 10,
        "learning_rate": 2.5e-4,
    },
    "toy_text": {"n_envs": 1},  # RL Zoo has none: the defaults
    "Procgen": {
        "policy": "CnnPolicy",
        "n_envs": 8,
        "n_steps": 128,
        "batch_size": 256,
        "n_epochs": 4,
        "learning_rate": linear(2.5e-4),
        "clip_range": linear(0.1),
        "ent_coef": 0.01,
    },
    "dm_control": {
        "normalize": True,
        "n_envs": 8,
        "n_steps": 2048,
        "batch_size": 64,
        "gae_lambda": 0.95,
        "gamma": 0.99,
        "n_epochs": 10,
        "learning_rate": 2.5e-4,
    },
}


def kind_of(env_id: str) -> str:
    """Return the kind of one of EnvPool's ids."""
    if env_id.startswith("MiniGrid"):
        return "MiniGrid"
    if env_id in TOY_TEXT:
        return "toy_text"
    return "Procgen" if env_id.endswith("Easy-v0") else "dm_control"


def make_envs(env_id: str, num_envs: int, seed: int) -> VecEnv:
    """Return Gymnasium's environments where it has them and SB3 takes them, else EnvPool's."""
    name = env_id.replace("Continuous-v3", "-v3") if env_id.startswith("Lunar") else env_id
    if name in gymnasium.registry and name not in TOY_TEXT:
        continuous = {"continuous": True} if name != env_id else {}
        return make_vec_env(name, num_envs, env_kwargs=continuous)
    from benchmarks.peers.sb3_envpool import EnvPoolVecEnv

    return VecMonitor(EnvPoolVecEnv(env_id, num_envs, seed, without=["mission"]))


def learn(
    algorithm: Any, policy: str, envs: VecEnv, seed: int, steps: int, options: dict[str, Any]
) -> dict[str, float]:
    """Train with RL Zoo's options; return the mean return of the last 100 episodes, and seconds."""
    options = {**options}
    if options.pop("normalize", False):
        envs = VecNormalize(envs, gamma=options.get("gamma", 0.99))
    started = time.monotonic()
    model = algorithm(policy, envs, seed=seed, device="cpu", **options)
    model.learn(steps)
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    return {
        "return": round(float(sum(returns)) / len(returns), 2),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    env_id, seed, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    options = {**(VALUES.get(env_id) or KINDS[kind_of(env_id)])}
    envs = make_envs(env_id, options.pop("n_envs", 1), seed)
    result = learn(PPO, options.pop("policy", "MlpPolicy"), envs, seed, steps, options)
    row = {"env": env_id, "seed": seed, "steps": steps, **result}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
