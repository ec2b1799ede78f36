"""Replays recorded runs of the originals through `training_step`.

`replay` feeds what went into the original's update (segments, orders of minibatches, schedule) to a
`Trainer` and captures our side of what came out of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from golden_recordings import Recording, names_of, to_ours, to_theirs
from golden_vectorized import VectorizedRecording
from lightning import Callback, LightningDataModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from ranks import run_on_ranks
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo1_lightning import PPO, TRPO, Rollout
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.functional import trust_region
from ppo1_lightning.policies.base import ActionOutputs
from ppo1_lightning.rollouts.segment import Minibatch
from ppo1_lightning.rollouts.sizes import Sizes


class Replayed(OnPolicyModule):
    """An algorithm with the recorded order of minibatches, which keeps what it computed."""

    recording: Recording
    shown: Tensor | None = None  # observations ``[T + 1, N, ...]`` of ppo2 and a2c

    def minibatch_order(self, sizes: Sizes) -> Tensor:
        first = self.global_rank * sizes.workers_per_device
        order = self.recording.order(self.counters.iterations)
        return order[:, first : first + sizes.workers_per_device]

    def act(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        """Not called, for rollouts are recorded; without it no graph of `act` is compiled."""
        raise NotImplementedError

    act_as_shown = act

    def estimate_advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        self.estimates = super().estimate_advantages(rollout)
        return self.estimates

    def intermediates(self) -> dict[str, Any]:
        """Return what else was computed in this iteration, by the recordings' names."""
        return {}


class ReplayedPPO(Replayed, PPO):
    pass


class ReplayedTRPO(Replayed, TRPO):
    def improve_policy(self, batch: Minibatch, fisher_batch: Minibatch) -> None:
        """Keep what goes into the steps of the algorithm and comes out of them."""
        self.kept: dict[str, Any] = {}
        names = ("conjugate_gradient", "step_to_boundary", "line_search")
        solve, scale, search = (getattr(trust_region, name) for name in names)

        def conjugate_gradient(product: Any, b: Tensor, *rest: Any) -> Tensor:
            direction = solve(product, b, *rest)
            self.kept |= {"gradient": b, "stepdir": direction}
            return direction

        def step_to_boundary(*given: Any) -> Tensor:
            self.kept["fullstep"] = scale(*given)
            return self.kept["fullstep"]

        def line_search(evaluate: Any, objective: float, *rest: Any, **options: Any) -> float:
            def evaluated(factor: float) -> tuple[float, float]:
                self.kept |= {"stepsize": factor, "after": evaluate(factor)}
                return self.kept["after"]

            self.kept["before"] = objective
            found = search(evaluated, objective, *rest, **options)
            self.kept["accepted"] = found > 0
            return found

        with (
            patch.object(trust_region, "conjugate_gradient", conjugate_gradient),
            patch.object(trust_region, "step_to_boundary", step_to_boundary),
            patch.object(trust_region, "line_search", line_search),
        ):
            super().improve_policy(batch, fisher_batch)

    def intermediates(self) -> dict[str, Any]:
        vectors = ("gradient", "stepdir", "fullstep")
        rest = {name: self._in_their_order(self.kept[name]) for name in vectors}
        return self.kept | rest | {"by_graphs": self._graphs[1] is not None}

    def _in_their_order(self, vector: Tensor) -> Tensor:
        """Turn a vector of the parameters that choose actions into the original's layout."""
        flat = self.acting_parameters.parameters
        parts = dict(zip(map(id, flat), vector.split([p.numel() for p in flat]), strict=True))
        named, recorded = dict(self.policy.named_parameters()), self.recording.parameters(0)
        ours = {theirs: named[name] for name, theirs in names_of(self.policy).items()}
        order = [ours[name] for name in recorded if name.startswith("pol/")]
        rows = [to_theirs(parts[id(p)].view_as(p).numpy(force=True)) for p in order]
        return torch.from_numpy(np.concatenate(rows))


class ReplayedVectorized(Replayed, PPO):
    """ppo2 and a2c: what each minibatch came to before its step, whatever takes the step."""

    def estimate_advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        self.kept: list[dict[str, Any]] = []
        self.rewards = rollout.rewards
        if self.reward_normalizer is None:
            return super().estimate_advantages(rollout)
        with self.reward_normalizer.register_forward_hook(self._keep_rewards):
            return super().estimate_advantages(rollout)

    def _keep_rewards(self, normalizer: Any, given: Any, rewards: Tensor) -> None:
        self.rewards = rewards

    def update(self, minibatches: Minibatch) -> None:
        for m in range(len(minibatches.weights)):
            self.kept.append(self._before_a_step(Minibatch(*(f[m] for f in minibatches))))
            super().update(Minibatch(*(f[m : m + 1] for f in minibatches)))

    def _before_a_step(self, batch: Minibatch) -> dict[str, Any]:
        parameters = list(self.policy.parameters())
        gradients = torch.autograd.grad(self.loss(batch), parameters)
        with torch.no_grad():
            dist_params, values = self.outputs(batch)
            terms = self.terms(batch, dist_params, values)
            log_probs = self.distribution.log_prob(dist_params, batch.actions)
            return {
                **{name: term.item() for name, term in terms.items()},
                "entropy": self.distribution.entropy(dist_params).mean().item(),
                "approx_kl": 0.5 * (log_probs - batch.old_log_probs).square().mean().item(),
                "grad_norm": sum(g.double().square().sum().item() for g in gradients) ** 0.5,
                "advantages": batch.advantages,
                "values": values,
                "old_values": batch.old_values,
                "old_log_probs": batch.old_log_probs,
            }

    def intermediates(self) -> dict[str, Any]:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        named = self.policy.named_parameters()
        return {
            "minibatches": self.kept,
            "rewards": self.rewards,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "clip_coef": self.now.values["clip_coef"],
            "value_clip": self.now.values["value_clip"],
            "state": {
                name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in named
            },
            "statistics": {
                name: normalizer.get_extra_state()
                for name, normalizer in (
                    ("ob", self.observation_normalizer),
                    ("ret", self.reward_normalizer),
                )
                if normalizer is not None
            },
            "under_way": getattr(self.reward_normalizer, "under_way", None),
        }


def path_of(module: OnPolicyModule) -> str:
    """Return the execution path that a run has taken, "none" before its first update."""
    return "none" if module._update is None else module._update.path


def make(recording: Recording, **options: Any) -> Replayed:
    """Return a module with the recorded hyperparameters and initial state."""
    kinds = {"ppo": ReplayedPPO, "trpo": ReplayedTRPO}
    module = kinds.get(recording.algorithm, ReplayedVectorized)(
        recording.policy(),
        observation_space=recording.observation_space(),
        action_space=recording.action_space(),
        **recording.hyperparameters(),
        **options,
    )
    module.recording = recording
    module.configure_model()
    _load_initial(module)
    if isinstance(recording, VectorizedRecording):
        recording.set_constants(module)
    return module


@torch.no_grad()
def _load_initial(module: Replayed) -> None:
    named, recording = dict(module.policy.named_parameters()), module.recording
    for ours, theirs in recording.names(module.policy).items():
        start = to_ours(recording.initial(theirs), named[ours].shape)
        named[ours].copy_(torch.from_numpy(start))
    normalizer = cast(Any, module.policy).observation_normalizer
    if normalizer is not None:
        names = {"sum": "runningsum", "sum_squares": "runningsumsq", "count": "count"}
        initial = {k: recording.initial(f"obfilter/{name}") for k, name in names.items()}
        normalizer.set_extra_state({k: torch.from_numpy(v) for k, v in initial.items()})


class _RecordedRollouts(IterableDataset[Rollout]):
    def __init__(self, recording: Recording, workers: slice, module: Replayed) -> None:
        self.recording, self.workers, self.module = recording, workers, module

    def __len__(self) -> int:
        return self.recording.iterations

    def __iter__(self) -> Any:
        for i in range(len(self)):
            yield self.recording.rollout(i, self.workers, self.module.policy)


class _VectorizedRollouts(IterableDataset[Rollout]):
    """Of observations as VecNormalize shows them, where it is part of the recording."""

    def __init__(self, recording: VectorizedRecording, module: Replayed) -> None:
        self.recording, self.module = recording, module
        self.last: np.ndarray | None = None  # the row after the last one

    def __len__(self) -> int:
        return self.recording.iterations

    def __iter__(self) -> Any:
        for i in range(len(self)):
            shown = self._shown(i)
            self.module.shown = torch.from_numpy(shown)  # for `_Capture`
            spent = self.recording.budget.fraction_spent(self.module.counters)
            yield self.recording.vectorized(
                i, torch.from_numpy(shown[:-1]), self.module.policy, spent
            )

    def _shown(self, iteration: int) -> np.ndarray:
        normalizer = self.module.observation_normalizer
        if normalizer is None:
            return self.recording.shown(iteration)
        rows = self.recording.of(iteration, "raw/ob").copy()
        for row in rows if self.last is None else rows[1:]:
            normalizer.observe(row, np.zeros(len(row), bool), torch.device("cpu"))
        rows[0] = rows[0] if self.last is None else self.last
        self.last = rows[-1]
        return rows


class _RecordedData(LightningDataModule):
    def __init__(self, recording: Recording, workers: slice, module: Replayed) -> None:
        super().__init__()
        self.dataset: IterableDataset[Rollout]
        if isinstance(recording, VectorizedRecording):
            self.budget = recording.budget
            self.dataset = _VectorizedRollouts(recording, module)
        else:
            self.dataset = _RecordedRollouts(recording, workers, module)

    def train_dataloader(self) -> IterableDataset[Rollout]:
        return self.dataset


class _Capture(Callback):
    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Replayed, *_: Any) -> None:  # type: ignore[override]
        normalizer = cast(Any, module.policy).observation_normalizer
        self.iterations.append(
            _on_host(
                {
                    "parameters": {
                        n: p.detach().clone() for n, p in module.policy.named_parameters()
                    },
                    "normalizer": {k: v.clone() for k, v in normalizer.get_extra_state().items()}
                    if normalizer is not None
                    else {},
                    "advantages": module.estimates[0].T.clone(),  # [W, T]
                    "returns": module.estimates[1].T.clone(),
                    "metrics": dict(module.metrics),
                    "intermediates": module.intermediates(),
                    "shown": module.shown,
                    "path": path_of(module),
                }
            )
        )


def _on_host(kept: dict[str, Any]) -> dict[str, Any]:
    return apply_to_collection(kept, Tensor, Tensor.cpu)


def replay(
    recording: Recording,
    *,
    rank: int = 0,
    ranks: int = 1,
    accelerator: str = "cpu",
    **options: Any,
) -> list[Any]:
    """Run a recording through a Trainer; return what each iteration left behind on this rank."""
    share = len(recording.workers) // ranks
    capture = _Capture()
    trainer = Trainer(
        accelerator=accelerator,
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
    module = make(recording, **options)
    trainer.fit(module, datamodule=_RecordedData(recording, workers, module))
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
