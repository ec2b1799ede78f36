"""``exact_resume``: a run that was stopped and continued is, bit for bit, one that never was."""

from __future__ import annotations

import csv
import logging
import random
from functools import partial
from pathlib import Path
from typing import Any

import kills
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from lightning import LightningDataModule, Trainer
from ranks import run_on_ranks
from torch import Tensor

from ppo1_lightning import (
    PPO,
    ConfigurationError,
    MlpPolicy,
    Rollout,
    RolloutDataModule,
    TensorFlowRMSprop,
)
from ppo1_lightning.callbacks import RunCheckpoint
from ppo1_lightning.rollouts.segment import Segment
from ppo1_lightning.runs.csv_logger import CSVLogger

pytestmark = pytest.mark.heavy

NUM_ENVS, NUM_STEPS = 4, 32
ROWS = NUM_ENVS * NUM_STEPS
EVERY = 3  # iterations between two checkpoints


class KilledError(Exception):
    """Stands in for a SIGKILL in the middle of an update."""


class Mortal(PPO):
    """PPO that dies in the middle of the update of iteration ``dies_in``."""

    def __init__(self, *args: Any, dies_in: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dies_in = dies_in

    def finish(self, rollout: Rollout, segment: Segment) -> None:
        if self.counters.iterations == self.dies_in:
            raise KilledError
        super().finish(rollout, segment)


def fit(
    folder: Path,
    iterations: int,
    *,
    env: str = "CartPole-v1",
    dies_in: int | None = None,
    exact: bool = True,
    devices: int = 1,
    **options: Any,
) -> Path:
    """Train, continuing from ``last.ckpt`` where there is one; return that file."""
    last = folder / "last.ckpt"
    resume = last if last.exists() else None
    done = load(last)["ppo1_lightning"]["counters"]["env_steps"] if resume else 0
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=-1,
        logger=CSVLogger(folder, purge_step=done + 1),
        callbacks=[RunCheckpoint(folder, every_n_iterations=EVERY, exact_resume=exact)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    in_policy = not options.get("normalize_observations")
    policy = partial(
        MlpPolicy,
        hidden_size=8,
        normalize_observations=in_policy,
        memory=options.pop("memory", None),
        memory_size=8,
    )
    options = {"compile": False, "minibatch_size": 32, "update_epochs": 2} | options
    module = Mortal(policy, learning_rate=1e-2, dies_in=dies_in, **options)
    data = RolloutDataModule(
        env, num_envs=NUM_ENVS, num_steps=NUM_STEPS, total_iterations=iterations
    )
    try:
        trainer.fit(module, data, ckpt_path=resume)
    except KilledError:
        assert dies_in is not None
    return last


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of nested containers by path."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    nested = [(f"{name}/{k}", v) for k, v in items if isinstance(v, dict | list | tuple | Tensor)]
    return {path: tensor for part, v in nested for path, tensor in tensors(v, part).items()}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Compare two checkpoints: weights, normalisers, Adam, episodes, counters."""
    one, other = load(ours), load(theirs)
    for key in ("state_dict", "optimizer_states"):
        left, right = tensors(one[key]), tensors(other[key])
        assert left.keys() == right.keys()
        assert left
        for name in left:
            assert torch.equal(left[name], right[name]), name
    entries = [checkpoint["ppo1_lightning"] for checkpoint in (one, other)]
    for entry in entries:
        entry["counters"].pop("seconds")
    assert entries[0] == entries[1]
    assert one["callbacks"] == other["callbacks"]  # the best score


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{**row, "steps_per_second": ""} for row in csv.DictReader(file)]


RUNS: dict[str, dict[str, Any]] = {
    "eager": {},
    "memory": {"memory": "lstm", "sequence_length": 16},
    "returns normalised": {"normalize_returns": True, "anneal": ["learning_rate"]},
    "step by step": {"normalize_observations": True, "optimizer": TensorFlowRMSprop},
}
RARELY: dict[str, dict[str, Any]] = {
    "traced": {"compile": "trace"},
    "compiled": {"compile": True},
    "actions of Box": {"env": "Pendulum-v1", "compile": "trace"},
}


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(v, id=k) for k, v in RUNS.items()),
        *(pytest.param(v, id=k, marks=pytest.mark.slow) for k, v in RARELY.items()),
    ],
)
def test_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """Killed in iterations 5 and 10, of 11, with checkpoints after 3, 6 and 9."""
    whole = fit(tmp_path / "whole", 11, **options)
    for dies_in in (4, 9):
        last = fit(tmp_path / "parts", 11, dies_in=dies_in, **options)
        assert load(last)["global_step"] == dies_in // EVERY * EVERY
    parts = fit(tmp_path / "parts", 11, **options)
    assert_same_run(whole, parts)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert len(rows(tmp_path / "whole")) == 11


def test_the_path_is_not_chosen_by_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fit(tmp_path, 2, compile="auto")
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("ppo1_lightning")]
    assert "exact_resume: compile=auto is trace, for what is faster may change" in messages
    assert any(message.startswith("update: traced") for message in messages)


def test_without_it_only_the_environments_start_anew(tmp_path: Path) -> None:
    """The iterations up to the checkpoint are the same; counters and statistics are right after."""
    fit(tmp_path / "whole", 11, exact=False)
    fit(tmp_path / "parts", 11, exact=False, dies_in=7)
    last = fit(tmp_path / "parts", 11, exact=False)
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert whole[:6] == parts[:6]
    assert whole[6] != parts[6]
    assert [row["env_steps"] for row in whole] == [row["env_steps"] for row in parts]
    checkpoint = load(last)
    counters = checkpoint["ppo1_lightning"]["counters"]
    assert (counters["iterations"], counters["env_steps"]) == (11, 11 * ROWS)
    normalizer = checkpoint["state_dict"]["policy.observation_normalizer._extra_state"]
    assert normalizer["count"].item() == pytest.approx(counters["transitions"] + 1e-2)
    assert int(parts[-1]["episodes"]) == counters["episodes"]
    # an episode under way is lost, and the ones that follow are as long as the policy makes them
    assert counters["episodes"] == pytest.approx(int(whole[-1]["episodes"]), rel=0.5)


def test_data_that_cannot_restart_is_refused(tmp_path: Path) -> None:
    class Foreign(LightningDataModule):
        pass

    checkpoint = RunCheckpoint(tmp_path, exact_resume=True)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[checkpoint])
    spaces = Box(-1, 1, (3,)), Discrete(2)
    module = PPO(MlpPolicy, observation_space=spaces[0], action_space=spaces[1])
    with pytest.raises(ConfigurationError, match=r"restart\(\), which Foreign has not"):
        trainer.fit(module, Foreign())


def test_the_restart_itself_changes_the_run(tmp_path: Path) -> None:
    """So that equality above is not because nothing ever restarts."""
    fit(tmp_path / "exact", 5)
    fit(tmp_path / "plain", 5, exact=False)
    exact, plain = rows(tmp_path / "exact"), rows(tmp_path / "plain")
    assert exact[:3] == plain[:3]
    assert exact[3] != plain[3]


def fit_on_rank(rank: int, folder: Path, iterations: int, exact: bool) -> dict[str, Tensor]:
    """Train on two devices; return this rank's weights, those of rank one kept beside."""
    module: list[PPO] = []

    class Watched(Mortal):
        def on_train_end(self) -> None:
            module.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Mortal", Watched)
        fit(folder, iterations, devices=2, exact=exact)
    return {
        name: tensor.clone()
        for name, tensor in module[0].policy.state_dict().items()
        if isinstance(tensor, Tensor)
    }


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_on_another_number_of_devices(exact: bool, tmp_path: Path) -> None:
    """On two devices, then on one, then on two: equal to one throughout, where it can be."""
    parts = tmp_path / "parts"
    first = run_on_ranks(fit_on_rank, 2, parts, 3, exact)
    fit(parts, 6, exact=exact)
    last = run_on_ranks(fit_on_rank, 2, parts, 9, exact)
    for ranks in (first, last):
        for name, tensor in ranks[0].items():
            assert tensor.isfinite().all()
            assert torch.equal(tensor, ranks[1][name])
    checkpoint = load(parts / "last.ckpt")
    counters = checkpoint["ppo1_lightning"]["counters"]
    assert (counters["iterations"], counters["env_steps"]) == (9, 9 * ROWS)
    records = rows(parts)
    assert [int(row["env_steps"]) for row in records] == [ROWS * (i + 1) for i in range(9)]
    normalizer = checkpoint["state_dict"]["policy.observation_normalizer._extra_state"]
    assert normalizer["count"].item() == pytest.approx(counters["transitions"] + 1e-2)
    if exact:
        expected = load(fit(tmp_path / "whole", 9))
        for key in ("state_dict", "optimizer_states"):
            theirs = tensors(expected[key])
            for name, tensor in tensors(checkpoint[key]).items():
                torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5)
        for ours, others in zip(records, rows(tmp_path / "whole"), strict=True):
            assert ours["episodes"] == others["episodes"]
            assert ours["episode_return_mean"] == others["episode_return_mean"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twenty_times(tmp_path: Path) -> None:
    words = ["total_iterations=900", "exact_resume=true", "compile=false"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    chance = random.Random(1)
    for _ in range(20):
        kills.kill_at_random(parts, chance, *words)
    for folder in (whole, parts):
        assert kills.finish(folder, *words, timeout=600) == 0, kills.output_of(folder)
    assert_same_run(*(folder / "checkpoints" / "last.ckpt" for folder in (whole, parts)))
    records = [kills.rows(folder) for folder in (whole, parts)]
    for row in records[0] + records[1]:
        row.pop("steps_per_second")
    assert records[0] == records[1]


def costs_told_on_rank(rank: int, folder: Path) -> list[str]:
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("ppo1_lightning")
    log.addHandler(handler)
    log.setLevel("INFO")
    fit(folder, 7, devices=2, mpi_workers=1)
    return [line for line in told if "devices share" in line or "update: " in line]


def test_what_a_run_is_made_of_is_told_once_however_often_it_starts_anew(tmp_path: Path) -> None:
    told, *others = run_on_ranks(costs_told_on_rank, 2, tmp_path)  # checkpoints after 3 and 6
    assert ["devices share" in line for line in told] == [True, False]
    assert others == [[]]
