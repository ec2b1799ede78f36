"""Replays recorded runs of the original ppo1 through `PPO.training_step`.

A recording is what went into the original's update (segments, orders of minibatches, schedule) and
what came out of it. `replay` feeds the former to a `Trainer` and captures our side of the latter.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from lightning import Callback, Trainer
from ranks import run_on_ranks
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ppo1_lightning import PPO, CnnPolicy, MlpPolicy, Rollout
from ppo1_lightning.optimizers import TensorFlowAdam
from ppo1_lightning.rollouts.sizes import Sizes


@dataclass
class Recording:
    """One recorded run; several files of a run with several MPI workers are one recording."""

    name: str
    workers: list[dict[str, np.ndarray]]  # contents of each worker's file

    @classmethod
    def find(cls, directory: Path) -> list[Recording]:
        """Return the recordings of a directory."""
        files: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(directory.glob("*.npz")):
            files[re.sub(r"_rank\d+$", "", path.stem)].append(path)
        rank = lambda path: int((re.findall(r"_rank(\d+)$", path.stem) or ["0"])[0])  # noqa: E731
        return [
            cls(name, [dict(np.load(path)) for path in sorted(paths, key=rank)])
            for name, paths in files.items()
        ]

    @property
    def config(self) -> dict[str, Any]:
        return ast.literal_eval(str(self.workers[0]["config"]))

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
        none = torch.full_like(rewards, torch.nan)
        dist_params = none[..., None]
        if policy is not None:
            with torch.no_grad():
                dist_params = policy(observations.flatten(0, 1), None)[0]
            dist_params = dist_params.unflatten(0, rewards.shape)
        return Rollout(
            observations=observations,
            actions=field("ac"),
            rewards=rewards,
            values=torch.cat([field("vpred"), following[None]]),
            dist_params=dist_params,
            terminated=terminated,
            truncated=torch.zeros_like(terminated),
            valid=torch.ones_like(terminated),
            episode_returns=none,
            episode_lengths=none,
            policy_version=iteration,
            fraction_spent=1 - float(self.workers[0][f"{iteration}/lrmult"]),
        )

    def order(self, iteration: int) -> Tensor:
        """Return the recorded ``[epochs + 1, W, minibatches, batch]`` row indices."""
        epochs = range(self.config["epochs"] + 1)
        return torch.from_numpy(np.stack([self.all(iteration, f"perm/{e}") for e in epochs]))

    def action_space(self) -> Any:
        ac, act = self.workers[0]["0/seg/ac"], self.config["act"]
        return {
            "box": lambda: Box(-np.inf, np.inf, ac.shape[1:]),
            "discrete": lambda: Discrete(act),
            # Recorded with [3, 4]; another recording says so in its config.
            "multidiscrete": lambda: MultiDiscrete(self.config.get("nvec", [3, 4])),
            "multibinary": lambda: MultiBinary(ac.shape[-1]),
        }[self.config["space"]]()

    def make(self, **options: Any) -> ReplayedPPO:
        """Return a module with the recorded hyperparameters and initial state."""
        config, first = self.config, self.rollout(0, slice(None))
        image = config["policy"] == "cnn"
        shape = first.observations.shape[2:]
        factory = (
            partial(CnnPolicy, size=config["kind"])
            if image
            else partial(MlpPolicy, hidden_size=config["hid"], num_layers=config["layers"])
        )
        module = ReplayedPPO(
            factory,
            minibatch_size=config["batch"] * len(self.workers),
            update_epochs=config["epochs"],
            mpi_workers=len(self.workers),
            learning_rate=config["lr"],
            anneal=["learning_rate"] if config["schedule"] == "linear" else [],
            optimizer=partial(TensorFlowAdam, eps=config["adam_epsilon"]),
            clip_coef=config["clip"],
            ent_coef=config["ent"],
            gamma=config["gamma"],
            gae_lambda=config["lam"],
            observation_space=Box(0, 255, shape, np.uint8)
            if image
            else Box(-np.inf, np.inf, shape),
            action_space=self.action_space(),
            **options,
        )
        module.recording = self
        module.configure_model()
        self._load_initial(module)
        return module

    @torch.no_grad()
    def _load_initial(self, module: ReplayedPPO) -> None:
        named = dict(module.policy.named_parameters())
        recorded = self.parameters(0)
        variables = [v.removesuffix("/shape") for v in recorded if v.endswith("/shape")]
        for ours, theirs in names_of(module).items():
            if variables:  # large weights are made from their index and shape
                start = seeded_weights(variables.index(theirs), recorded[f"{theirs}/shape"], theirs)
                kept = recorded[f"{theirs}/every97th"]
                np.testing.assert_array_equal(start.flatten()[::97], kept, err_msg=theirs)
            else:
                start = recorded[theirs]
            named[ours].copy_(torch.from_numpy(to_ours(start, named[ours].shape)))
        normalizer = cast(Any, module.policy).observation_normalizer
        if normalizer is not None:
            normalizer.set_extra_state(
                {
                    "sum": torch.from_numpy(recorded["obfilter/runningsum"]),
                    "sum_squares": torch.from_numpy(recorded["obfilter/runningsumsq"]),
                    "count": torch.from_numpy(recorded["obfilter/count"]),
                }
            )


class ReplayedPPO(PPO):
    """PPO with the recorded order of minibatches, which keeps what it computed on the way."""

    recording: Recording

    def minibatch_order(self, sizes: Sizes) -> Tensor:
        first = self.global_rank * sizes.workers_per_device
        order = self.recording.order(self.counters.iterations)
        return order[:, first : first + sizes.workers_per_device]

    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Not called, for rollouts are recorded; without it no graph of `act` is compiled."""
        raise NotImplementedError

    def estimate_advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        self.estimates = super().estimate_advantages(rollout)
        return self.estimates


def path_of(module: PPO) -> str:
    """Return the execution path that a run has taken, "none" before its first update."""
    return "none" if module._update is None else module._update.path


def names_of(module: PPO) -> dict[str, str]:
    """Map our parameter names to the original's."""

    def theirs(name: str) -> str:
        name = name.replace("weight", "kernel")
        if isinstance(module.policy, CnnPolicy):
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

    return {name: theirs(name) for name, _ in module.policy.named_parameters()}


def seeded_weights(index: int, shape: np.ndarray, name: str) -> np.ndarray:
    """Return the initial value of variable number ``index`` of a CNN recording."""
    if name.endswith(("/b", "/bias")):
        return np.zeros(shape, np.float32)
    values = np.random.RandomState(index).standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
    return (values.astype(np.float32) * (0.1 if name == "logits/kernel" else 1)).astype(np.float32)


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


class _RecordedRollouts(IterableDataset[Rollout]):
    def __init__(self, recording: Recording, workers: slice, module: ReplayedPPO) -> None:
        self.recording, self.workers, self.module = recording, workers, module

    def __len__(self) -> int:
        return self.recording.iterations

    def __iter__(self) -> Any:
        for i in range(len(self)):
            yield self.recording.rollout(i, self.workers, self.module.policy)


class _Capture(Callback):
    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, module: ReplayedPPO, *_: Any) -> None:  # type: ignore[override]
        normalizer = cast(Any, module.policy).observation_normalizer
        self.iterations.append(
            {
                "parameters": {n: p.detach().clone() for n, p in module.policy.named_parameters()},
                "normalizer": {k: v.clone() for k, v in normalizer.get_extra_state().items()}
                if normalizer is not None
                else {},
                "advantages": module.estimates[0].T.clone(),  # [W, T]
                "returns": module.estimates[1].T.clone(),
                "metrics": dict(module.metrics),
                "path": path_of(module),
            }
        )


def replay(recording: Recording, *, rank: int = 0, ranks: int = 1, **options: Any) -> list[Any]:
    """Run a recording through a Trainer; return what each iteration left behind on this rank."""
    share = len(recording.workers) // ranks
    capture = _Capture()
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=1,
        callbacks=[capture],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    workers = slice(rank * share, (rank + 1) * share)
    module = recording.make(**options)
    trainer.fit(module, _RecordedRollouts(recording, workers, module))
    return capture.iterations


def replay_on_ranks(
    recordings: list[Recording], ranks: int, output: Path, **options: Any
) -> dict[str, list[list[Any]]]:
    """Replay recordings in one group of gloo processes: ``{name: [rank][iteration]}``."""
    run_on_ranks(_replay_rank, ranks, ranks, recordings, output, options)
    return {
        r.name: [torch.load(output / f"{r.name}_{rank}.pt") for rank in range(ranks)]
        for r in recordings
    }


def _replay_rank(
    rank: int, ranks: int, recordings: list[Recording], output: Path, options: dict[str, Any]
) -> None:
    for recording in recordings:
        torch.save(
            replay(recording, rank=rank, ranks=ranks, **options),
            output / f"{recording.name}_{rank}.pt",
        )
