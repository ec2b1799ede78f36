"""Recorded runs of the original ppo2 and a2c, whose environments share one rollout ``[T, N]``."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_recordings import Recording, said_by, whole_rollout
from gymnasium.spaces import Box
from torch import Tensor, nn

from ppo1_lightning import CnnPolicy, MlpPolicy, Rollout, TensorFlowAdam, TensorFlowRMSprop
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.rollouts.budget import Budget


def find(directory: Path) -> list[Recording]:
    """Return the recordings of a directory, of whichever algorithms their configs are."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(directory.glob("*.npz")):
        files[re.sub(r"_rank\d+$", "", path.stem)].append(path)
    rank = lambda path: int((re.findall(r"_rank(\d+)$", path.stem) or ["0"])[0])  # noqa: E731
    found = (
        Recording(name, [dict(np.load(path)) for path in sorted(paths, key=rank)])
        for name, paths in files.items()
    )
    return [
        VectorizedRecording(r.name, r.workers)
        if {"noptepochs", "rmsprop_epsilon"} & r.config.keys()
        else r
        for r in found
    ]


class VectorizedRecording(Recording):
    """One recorded run, of one worker with all environments."""

    @property
    def algorithm(self) -> str:
        return "a2c" if "rmsprop_epsilon" in self.config else "ppo2"

    @property
    def iterations(self) -> int:
        return self.config["iters"]

    @property
    def budget(self) -> Budget:
        sizes = (self.config[key] for key in ("iters", "nenvs", "nsteps"))
        return Budget(total_steps=int(np.prod([*sizes])))

    @property
    def vecnormalize(self) -> dict[str, Any]:
        """Return the arguments of VecNormalize, with neither of its two where there is none."""
        return self.config.get("vecnormalize") or {"ob": False, "ret": False}

    def of(self, iteration: int, name: str) -> np.ndarray:
        """Return an array of an update."""
        return self.workers[0][f"{iteration}/{name}"]

    def has(self, iteration: int, name: str) -> bool:
        return f"{iteration}/{name}" in self.workers[0]

    def shown(self, iteration: int) -> np.ndarray:
        """Return what the policy saw, ``[T + 1, N, ...]``."""
        rows = [self.of(iteration, "seg/ob"), self.of(iteration, "seg/last_ob")[None]]
        numbers = np.concatenate(rows)
        if self.config["policy"] == "cnn":
            return self.workers[0]["pictures"][numbers]  # [T + 1, N, C, H, W]
        return numbers

    def vectorized(
        self, iteration: int, observations: Tensor, policy: nn.Module, fraction_spent: float
    ) -> Rollout:
        """Return a rollout with these observations; the policy tells its distributions."""
        names = ("ac", "rew", "vpred", "dones", "last_dones", "last_value")
        actions, rewards, values, dones, last_dones, last_value = (
            torch.from_numpy(self.of(iteration, f"seg/{name}")) for name in names
        )
        if self.vecnormalize["ret"]:
            rewards = torch.from_numpy(self.of(iteration, "raw/rew"))
        terminated = torch.cat([dones[1:], last_dones[None]]).bool()
        return whole_rollout(
            observations=observations,
            actions=actions,
            rewards=rewards,
            values=torch.cat([values, last_value[None]]),
            dist_params=said_by(policy, observations),
            terminated=terminated,
            policy_version=iteration,
            fraction_spent=fraction_spent,
        )

    def order(self, iteration: int) -> Tensor:
        """Return the rows of minibatches, ``[passes + 1, 1, minibatches, batch]``.

        Theirs are numbered environment by environment, ours step by step; a2c takes all at once.
        """
        config = self.config
        steps, envs = config["nsteps"], config["nenvs"]
        if self.algorithm == "a2c":
            return torch.arange(steps * envs).expand(2, 1, 1, -1)
        rows = np.stack([self.of(iteration, f"perm/{e}") for e in range(config["noptepochs"])])
        ours = torch.from_numpy(rows % steps * envs + rows // steps)
        return torch.cat([ours, ours[-1:]])[:, None]

    def policy(self) -> Any:
        shared = {"shared": True, "copy": False}[self.config["value_network"]]
        if self.config["policy"] == "cnn":
            return partial(CnnPolicy, size="large", shared_trunk=shared)
        return partial(
            MlpPolicy,
            hidden_size=self.config["hid"],
            num_layers=self.config["layers"],
            shared_trunk=shared,
            normalize_observations=False,
        )

    def hyperparameters(self) -> dict[str, Any]:
        """Return the recorded arguments of the algorithm."""
        config = self.config
        its_own = self._of_a2c() if self.algorithm == "a2c" else self._of_ppo2()
        annealed = ["learning_rate"] if config["lr_schedule"] == "linear" else []
        if config.get("cliprange_schedule") == "linear":
            annealed += ["clip_coef", "value_clip"]
        return {
            "mpi_workers": 1,
            "learning_rate": config["lr"],
            "anneal": annealed,
            "ent_coef": config["ent"],
            "gamma": config["gamma"],
            "max_grad_norm": config["max_grad_norm"],
            "normalize_observations": self.vecnormalize["ob"],
            "normalize_returns": self.vecnormalize["ret"],
            **its_own,
        }

    def _of_ppo2(self) -> dict[str, Any]:
        config = self.config
        return {
            "minibatch_size": config["nenvs"] * config["nsteps"] // config["nminibatches"],
            "update_epochs": config["noptepochs"],
            "optimizer": partial(
                TensorFlowAdam,
                betas=(config["beta1"], config["beta2"]),
                eps=config["adam_epsilon"],
                float32_constants=True,
            ),
            "gae_lambda": config["lam"],
            "normalize_advantages": "minibatch",
            "clip_coef": config["cliprange"],
            "value_clip": config["cliprange"],
            "vf_coef": config["vf_coef"] / 2,  # theirs weighs half the squared error
        }

    def _of_a2c(self) -> dict[str, Any]:
        config = self.config
        optimizer = {"alpha": config["alpha"], "eps": config["rmsprop_epsilon"]}
        return {
            "minibatch_size": None,
            "update_epochs": 1,
            "optimizer": partial(TensorFlowRMSprop, **optimizer),
            "anneal_ahead": True,
            "gae_lambda": 1.0,
            "normalize_advantages": "none",
            "vf_coef": config["vf_coef"],
        }

    def set_constants(self, module: OnPolicyModule) -> None:
        """Let the normalisers have the recorded constants, which no option says."""
        given = self.vecnormalize
        pairs = ((module.observation_normalizer, "clipob"), (module.reward_normalizer, "cliprew"))
        for normalizer, clip in pairs:
            if normalizer is not None:
                normalizer.clip, normalizer.epsilon = given[clip], given["epsilon"]
        if module.reward_normalizer is not None:
            module.reward_normalizer.gamma = given["gamma"]

    def observation_space(self) -> Box:
        shape = self.shown(0).shape[2:]
        if self.config["policy"] == "cnn":
            return Box(0, 255, shape, np.uint8)
        return Box(-np.inf, np.inf, shape)

    def names(self, policy: nn.Module) -> dict[str, str]:
        """Map our parameter names to theirs."""

        def theirs(name: str) -> str:
            name = name.replace("weight", "w").replace("bias", "b")
            name = name.replace("action_head", "pi").replace("value_head", "vf")
            name = name.replace("log_std", "pi.logstd")
            name = name.replace("value_trunk", "vf").replace("trunk", "pi")
            name = re.sub(r"convolutions\.(\d+)", lambda m: f"c{int(m[1]) // 2 + 1}", name)
            name = name.replace("linear", "fc1")
            name = re.sub(r"\.(\d+)\.", lambda m: f".mlp_fc{int(m[1]) // 2}.", name)
            return name.replace(".", "/")

        return {name: theirs(name) for name, _ in policy.named_parameters()}
