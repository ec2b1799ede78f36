"""Recorded runs of the original ppo1 and trpo_mpi: what went into an update, and what came out."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor, nn

from ppo1_lightning import CnnPolicy, MlpPolicy, Rollout, TensorFlowAdam


def whole_rollout(*, rewards: Tensor, terminated: Tensor, **fields: Any) -> Rollout:
    """Return a rollout ``[T, N]`` whose rows are all transitions, and whose ends are all failures.

    Of its episodes nothing is told.
    """
    none = torch.full_like(rewards, torch.nan)
    return Rollout(
        rewards=rewards,
        terminated=terminated,
        truncated=torch.zeros_like(terminated),
        valid=torch.ones_like(terminated),
        episode_returns=none,
        episode_lengths=none,
        **fields,
    )


@dataclass
class Recording:
    """One recorded run; several files of a run with several MPI workers are one recording."""

    name: str
    workers: list[dict[str, np.ndarray]]  # contents of each worker's file

    @property
    def config(self) -> dict[str, Any]:
        return ast.literal_eval(str(self.workers[0]["config"]))

    @property
    def algorithm(self) -> str:
        return self.config.get("algorithm", "ppo")

    @property
    def iterations(self) -> int:
        return sum(f"{i}/adv" in self.workers[0] for i in range(self.config["iters"]))

    def all(self, iteration: int, name: str) -> np.ndarray:
        """Return an array of all workers, ``[W, ...]``."""
        return np.stack([worker[f"{iteration}/{name}"] for worker in self.workers])

    def parameters(self, iteration: int) -> dict[str, np.ndarray]:
        prefix = f"{iteration}/params/"
        return {k[len(prefix) :]: v for k, v in self.workers[0].items() if k.startswith(prefix)}

    def rollout(self, iteration: int, workers: slice, policy: nn.Module | None = None) -> Rollout:
        """Return the segments of some workers, an environment each.

        The original did not record its action distributions: ``policy``, which acts with the same
        weights, tells them.
        """

        def field(name: str) -> Tensor:
            stacked = np.stack([worker[f"{iteration}/seg/{name}"] for worker in self.workers])
            return torch.from_numpy(stacked[workers]).transpose(0, 1).contiguous()

        rewards, new = field("rew"), field("new").bool()
        observations = field("ob")
        if self.config["policy"] == "cnn":
            observations = observations.permute(0, 1, 4, 2, 3).contiguous()
        # An episode ends where the next row begins one; after the last row nextvpred knows.
        terminated = torch.cat([new[1:], torch.zeros_like(new[:1])])
        following = torch.from_numpy(self.all(iteration, "seg/nextvpred")[workers]).float()
        dist_params = torch.full_like(rewards, torch.nan)[..., None]
        if policy is not None:
            dist_params = said_by(policy, observations)
        return whole_rollout(
            observations=observations,
            actions=field("ac"),
            rewards=rewards,
            values=torch.cat([field("vpred"), following[None]]),
            dist_params=dist_params,
            terminated=terminated,
            policy_version=iteration,
            fraction_spent=1 - float(self.workers[0].get(f"{iteration}/lrmult", 1.0)),
        )

    def order(self, iteration: int) -> Tensor:
        """Return the recorded row indices, ``[passes + 1, W, minibatches, batch]``.

        Where no order is recorded for measuring afterwards, the last one stands there again.
        """
        prefix = f"{iteration}/perm/"
        passes = sum(name.startswith(prefix) for name in self.workers[0])
        if self.algorithm == "trpo":
            assert passes == self.config["vf_iters"]
            epochs = [*range(passes), passes - 1]
        else:
            assert passes == self.config["epochs"] + 1
            epochs = [*range(passes)]
        return torch.from_numpy(np.stack([self.all(iteration, f"perm/{e}") for e in epochs]))

    def action_space(self) -> Any:
        ac, act = self.workers[0]["0/seg/ac"], self.config["act"]
        return {
            "box": lambda: Box(-np.inf, np.inf, ac.shape[-1:]),
            "discrete": lambda: Discrete(act),
            # Recorded with [3, 4]; another recording says so in its config.
            "multidiscrete": lambda: MultiDiscrete(self.config.get("nvec", [3, 4])),
            "multibinary": lambda: MultiBinary(ac.shape[-1]),
        }[self.config["space"]]()

    def policy(self) -> Callable[..., nn.Module]:
        """Return what makes the recorded policy."""
        config = self.config
        if config["policy"] == "cnn":
            return partial(CnnPolicy, size=config["kind"])
        return partial(MlpPolicy, hidden_size=config["hid"], num_layers=config["layers"])

    def observation_space(self) -> Box:
        shape = self.rollout(0, slice(None)).observations.shape[2:]
        if self.config["policy"] == "cnn":
            return Box(0, 255, shape, np.uint8)
        return Box(-np.inf, np.inf, shape)

    def hyperparameters(self) -> dict[str, Any]:
        """Return the recorded arguments of the algorithm."""
        config = self.config
        its_own = self._of_trpo() if self.algorithm == "trpo" else self._of_ppo()
        return {
            "mpi_workers": len(self.workers),
            "optimizer": partial(TensorFlowAdam, eps=config["adam_epsilon"]),
            "ent_coef": config["ent"],
            "gamma": config["gamma"],
            "gae_lambda": config["lam"],
            **its_own,
        }

    def _of_ppo(self) -> dict[str, Any]:
        config = self.config
        return {
            "minibatch_size": config["batch"] * len(self.workers),
            "update_epochs": config["epochs"],
            "learning_rate": config["lr"],
            "anneal": ["learning_rate"] if config["schedule"] == "linear" else [],
            "clip_coef": config["clip"],
        }

    def _of_trpo(self) -> dict[str, Any]:
        config = self.config
        # What is fixed in ours too.
        assert (config["cg_residual_tolerance"], config["kl_slack"]) == (1e-10, 1.5)
        return {
            "minibatch_size": config["vf_batch"] * len(self.workers),
            "vf_iters": config["vf_iters"],
            "learning_rate": config["vf_stepsize"],
            "max_kl": config["max_kl"],
            "cg_iters": config["cg_iters"],
            "cg_damping": config["cg_damping"],
            "fisher_every": config["fvp_every"],
            "line_search_steps": config["line_search_steps"],
        }

    def names(self, policy: nn.Module) -> dict[str, str]:
        """Map our parameter names to the original's."""
        return names_of(policy)

    def initial(self, name: str) -> np.ndarray:
        """Return a variable before the first iteration."""
        recorded = self.parameters(0)
        if name in recorded:
            return recorded[name]
        # Large weights are made from their index and shape.
        variables = [v.removesuffix("/shape") for v in recorded if v.endswith("/shape")]
        variables = self.config.get("variables", variables)
        start = seeded_weights(variables.index(name), recorded[f"{name}/shape"], name)
        np.testing.assert_array_equal(
            start.flatten()[::97], recorded[f"{name}/every97th"], err_msg=name
        )
        return start


@torch.no_grad()
def said_by(policy: nn.Module, observations: Tensor) -> Tensor:
    """Return the distribution parameters ``[T, N, P]`` for ``[T, N, ...]``, where the policy is."""
    rows = observations.flatten(0, 1).to(next(policy.parameters()).device)
    return policy(rows, None)[0].unflatten(0, observations.shape[:2])


def names_of(policy: nn.Module) -> dict[str, str]:
    """Map our parameter names to the original's."""

    def theirs(name: str) -> str:
        name = name.replace("weight", "kernel")
        if isinstance(policy, CnnPolicy):
            name = re.sub(
                r"trunk\.convolutions\.(\d+)\.(\w)\w*",
                lambda m: f"l{int(m[1]) // 2 + 1}/{'W' if m[2] == 'k' else 'b'}",
                name,
            )
            name = name.replace("trunk.linear", "lin").replace("action_head", "logits")
            return name.replace("value_head", "value").replace(".", "/")
        name = name.replace("value_trunk", "vf").replace("trunk", "pol")
        name = re.sub(r"\.(\d+)", lambda m: f".fc{int(m[1]) // 2 + 1}", name)
        name = name.replace("action_head", "pol.final").replace("value_head", "vf.final")
        return name.replace("log_std", "pol.logstd").replace(".", "/")

    return {name: theirs(name) for name, _ in policy.named_parameters()}


def seeded_weights(index: int, shape: np.ndarray, name: str) -> np.ndarray:
    """Return the initial value of variable number ``index`` of a CNN recording."""
    if name.endswith(("/b", "/bias")):
        return np.zeros(shape, np.float32)
    values = np.random.RandomState(index).standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
    scale = 0.1 if name in ("logits/kernel", "pi/w") else 1
    return (values.astype(np.float32) * scale).astype(np.float32)


def to_ours(array: np.ndarray, shape: torch.Size) -> np.ndarray:
    """Turn the original's layout (kernels ``[in, out]`` and ``[H, W, in, out]``) into ours."""
    if array.ndim == 4:  # also a convolution's bias, which is [1, 1, 1, out]
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array).reshape(tuple(shape))


def to_theirs(array: np.ndarray) -> np.ndarray:
    """Turn our layout into the original's, flattened."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return (array.transpose(axes) if axes else array).flatten()
