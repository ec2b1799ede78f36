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
from lightning import Callback, Trainer
from ranks import run_on_ranks
from torch import Tensor
from torch.utils.data import IterableDataset

from ppo1_lightning import PPO, TRPO, Rollout
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.functional import trust_region
from ppo1_lightning.rollouts.segment import Minibatch
from ppo1_lightning.rollouts.sizes import Sizes


class Replayed(OnPolicyModule):
    """An algorithm with the recorded order of minibatches, which keeps what it computed."""

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
        return self.kept | {name: self._in_their_order(self.kept[name]) for name in vectors}

    def _in_their_order(self, vector: Tensor) -> Tensor:
        """Turn a vector of the parameters that choose actions into the original's layout."""
        flat = self.acting_parameters.parameters
        parts = dict(zip(map(id, flat), vector.split([p.numel() for p in flat]), strict=True))
        named, recorded = dict(self.policy.named_parameters()), self.recording.parameters(0)
        ours = {theirs: named[name] for name, theirs in names_of(self.policy).items()}
        order = [ours[name] for name in recorded if name.startswith("pol/")]
        rows = [to_theirs(parts[id(p)].view_as(p).numpy()) for p in order]
        return torch.from_numpy(np.concatenate(rows))


def path_of(module: OnPolicyModule) -> str:
    """Return the execution path that a run has taken, "none" before its first update."""
    return "none" if module._update is None else module._update.path


def make(recording: Recording, **options: Any) -> Replayed:
    """Return a module with the recorded hyperparameters and initial state."""
    module = {"ppo": ReplayedPPO, "trpo": ReplayedTRPO}[recording.algorithm](
        recording.policy(),
        observation_space=recording.observation_space(),
        action_space=recording.action_space(),
        **recording.hyperparameters(),
        **options,
    )
    module.recording = recording
    module.configure_model()
    _load_initial(module)
    return module


@torch.no_grad()
def _load_initial(module: Replayed) -> None:
    named, recording = dict(module.policy.named_parameters()), module.recording
    for ours, theirs in names_of(module.policy).items():
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


class _Capture(Callback):
    def __init__(self) -> None:
        self.iterations: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Replayed, *_: Any) -> None:  # type: ignore[override]
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
                "intermediates": module.intermediates(),
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
    module = make(recording, **options)
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
