# pyright: reportMissingImports=false
"""Stable-Baselines3's PPO and sb3-contrib's TRPO: ``python -m benchmarks.peers.sb3 CASE``.

In their virtual environment, see `benchmarks.setup_peers`.

Its own defaults (vectorised environments, networks) with the sizes of the case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ale_py
import gymnasium
import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from benchmarks.measure import Measurement, emit, parse_case


@dataclass(frozen=True)
class Case:
    env: str
    num_envs: int
    options: dict[str, Any] = field(default_factory=dict)
    atari: bool = False
    algorithm: type[PPO] | type[TRPO] | type[RecurrentPPO] = PPO

    def make(self) -> VecEnv:
        if self.atari:
            return VecFrameStack(make_atari_env(self.env, n_envs=self.num_envs), n_stack=4)
        return make_vec_env(self.env, n_envs=self.num_envs)


CASES = {
    "halfcheetah_8x256": Case("HalfCheetah-v4", 8, {"n_steps": 256}),
    "halfcheetah_1x2048": Case("HalfCheetah-v4", 1),
    "cartpole": Case("CartPole-v1", 8, {"n_steps": 32, "batch_size": 256, "n_epochs": 20}),
    "atari": Case(
        "PongNoFrameskip-v4",
        8,
        {
            "n_steps": 128,
            "batch_size": 256,
            "n_epochs": 4,
            "learning_rate": 2.5e-4,
            "clip_range": 0.1,
            "ent_coef": 0.01,
        },
        atari=True,
    ),
    "memory_cartpole": Case(
        "CartPole-v1",
        8,
        {"n_steps": 128, "batch_size": 256, "policy_kwargs": {"lstm_hidden_size": 128}},
        algorithm=RecurrentPPO,
    ),
    "memory_halfcheetah": Case(
        "HalfCheetah-v4",
        8,
        {"n_steps": 256, "batch_size": 512, "policy_kwargs": {"lstm_hidden_size": 128}},
        algorithm=RecurrentPPO,
    ),
    "trpo_halfcheetah": Case(
        "HalfCheetah-v4",
        1,
        {
            "n_steps": 2048,
            "batch_size": 64,
            "n_critic_updates": 5,
            "cg_max_steps": 10,
            "sub_sampling_factor": 5,
            "gae_lambda": 0.98,
            "policy_kwargs": {"net_arch": [32, 32]},
        },
        algorithm=TRPO,
    ),
    "trpo_halfcheetah_sb3": Case("HalfCheetah-v4", 1, algorithm=TRPO),
    "trpo_cartpole": Case(
        "CartPole-v1",
        8,
        {
            "n_steps": 128,
            "batch_size": 64,
            "n_critic_updates": 5,
            "cg_max_steps": 10,
            "sub_sampling_factor": 5,
            "gae_lambda": 0.98,
        },
        algorithm=TRPO,
    ),
}


class Clock(BaseCallback):
    def __init__(self, measurement: Measurement) -> None:
        super().__init__()
        self.measurement, self.enough = measurement, False

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == 0:
            self.measurement.begin()
        else:  # the iteration before, with its update, ends here
            self.enough = self.measurement.tick(self.num_timesteps)

    def _on_step(self) -> bool:
        return not self.enough


def main() -> None:
    parser = parse_case(list(CASES), __doc__, by_steps=True)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    # One thread is faster for the MLPs; the CNN keeps PyTorch's default.
    threads = arguments.threads or (None if case.atari else 1)
    if threads:
        torch.set_num_threads(threads)
    gymnasium.register_envs(ale_py)
    measurement = Measurement(arguments.seconds, steps=arguments.steps)
    policy = "CnnPolicy" if case.atari else "MlpPolicy"
    if case.algorithm is RecurrentPPO:
        policy = "MlpLstmPolicy"
    model = case.algorithm(policy, case.make(), device="cpu", seed=0, **case.options)
    model.learn(10**9, callback=Clock(measurement))
    versions = {
        "torch": torch.__version__,
        "stable-baselines3": stable_baselines3.__version__,
        "sb3-contrib": sb3_contrib.__version__,
    }
    emit(
        measurement.result(
            parameters=sum(p.numel() for p in model.policy.parameters()),
            torch_threads=torch.get_num_threads(),
            versions=versions,
        )
    )


if __name__ == "__main__":
    main()
