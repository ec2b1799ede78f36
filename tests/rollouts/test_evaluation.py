"""Evaluation counts what brute force counts, and leaves training as it is, bit for bit."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import envpool
import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from ranks import run_on_ranks
from scripted_env import expected_rows
from tiny_runs import train_tiny
from torch.utils._pytree import tree_leaves

from ppo1_lightning import (
    PPO,
    CnnPolicy,
    ConfigurationError,
    EnvironmentSpec,
    Evaluation,
    EvaluationDataModule,
    MlpPolicy,
    RolloutDataModule,
)
from ppo1_lightning.commands import evaluate as command
from ppo1_lightning.rollouts.evaluation import BLOCK, EvaluationDataset, mean_interval
from ppo1_lightning.rollouts.seeding import environment_seeds, generator

pytestmark = pytest.mark.heavy

SCRIPTED = "scripted_env:Scripted-v0"
QUIET: dict[str, Any] = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


def scripted_episodes(seed: int, count: int) -> list[tuple[float, int]]:
    """Return (return, length) of the first episodes of an environment, from its definition."""
    episodes, total, length = [], 0.0, 0
    for row in expected_rows(seed):
        total, length = total + row.reward, length + row.valid
        if row.terminated or row.truncated:
            episodes.append((total, length))
            total, length = 0.0, 0
        if len(episodes) == count:
            break
    return episodes


def play(env: str | EnvironmentSpec, policy: Any = MlpPolicy, **settings: Any) -> PPO:
    """Return a module after ``Trainer.test``."""
    module = PPO(policy)
    data = EvaluationDataModule(env, Evaluation(**settings), seed=3)
    (scores,) = Trainer(accelerator="cpu", **QUIET).test(module, data, verbose=False)
    assert module.evaluated is not None
    expected = {f"evaluation/{k}": v for k, v in module.evaluated.summary().items()}
    assert scores == pytest.approx(expected, rel=1e-6, nan_ok=True)
    return module


@pytest.mark.parametrize("what", ["test", "validate"])
def test_scores_are_returned_and_logged_once_over_environment_steps(what: str, tmp_path: Path):
    module = PPO(MlpPolicy, compile=False)
    data = RolloutDataModule(
        SCRIPTED, num_envs=2, num_steps=64, total_iterations=2, evaluation=Evaluation(4, 2)
    )
    logger = CSVLogger(tmp_path, name="", version="")
    options = {**QUIET, "logger": logger, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer = Trainer(accelerator="cpu", max_epochs=1, check_val_every_n_epoch=9, **options)
    trainer.fit(module, data)
    (scores,) = getattr(trainer, what)(module, data, verbose=False)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["evaluation/return_mean"]]
    assert [int(row["step"]) for row in rows] == [module.counters.env_steps] == [256]
    assert float(rows[0]["evaluation/return_mean"]) == pytest.approx(
        scores["evaluation/return_mean"]
    )


def evaluated_while_training(rank: int, devices: int) -> list[float]:
    """Return the returns of the last evaluation of a training run."""
    module = PPO(MlpPolicy, compile=False)
    strategy = "ddp" if devices > 1 else "auto"
    data = RolloutDataModule(
        SCRIPTED, num_envs=2, num_steps=64, total_iterations=2, evaluation=Evaluation(11, 3), seed=3
    )
    trainer = Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=-1, **QUIET)
    trainer.fit(module, data)
    assert module.evaluated is not None
    return module.evaluated.returns.tolist()


@pytest.mark.parametrize(("episodes", "num_envs"), [(60, 4), (11, 3), (2, 5), (1, 1)])
def test_episodes_are_the_first_of_each_environment(episodes: int, num_envs: int) -> None:
    played = play(SCRIPTED, episodes=episodes, num_envs=num_envs).evaluated
    assert played is not None
    seeds = environment_seeds(3, min(num_envs, episodes), purpose="evaluation")
    shares = [len(part) for part in np.array_split(np.arange(episodes), len(seeds))]
    expected = [
        e for seed, n in zip(seeds, shares, strict=True) for e in scripted_episodes(seed, n)
    ]
    torch.testing.assert_close(
        torch.stack([played.returns, played.lengths], 1),
        torch.tensor(expected).double(),
        rtol=1e-6,
        atol=2e-6,  # rewards are float32
    )


def test_long_episodes_count_as_much_as_short_ones() -> None:
    """The first to end would nearly all be of length 1."""
    spec = EnvironmentSpec(SCRIPTED, options={"script": [(1, "terminated"), (500, "terminated")]})
    played = play(spec, episodes=20, num_envs=10).evaluated
    assert played is not None
    assert sorted(played.lengths.tolist()) == [1.0] * 10 + [500.0] * 10


def test_episodes_that_do_not_end_count_as_they_stand(caplog: pytest.LogCaptureFixture) -> None:
    """The last of their environments, which cannot be told to begin anew; others play on."""
    spec = EnvironmentSpec(SCRIPTED, options={"script": [(1, "terminated"), (500, "terminated")]})
    played = play(spec, episodes=20, num_envs=10, max_steps=BLOCK).evaluated
    assert played is not None
    lengths = sorted(played.lengths.tolist())
    assert lengths[:10] == [1.0] * 10
    assert len(lengths) == 20
    assert all(BLOCK <= length < 2 * BLOCK for length in lengths[10:])
    assert played.cut_off == 10
    assert f"10 of 20 episodes had not ended after max_steps={BLOCK} and count" in caplog.text
    whole = play(spec, episodes=4, num_envs=2, max_steps=501).evaluated
    assert whole is not None
    assert (sorted(whole.lengths.tolist()), whole.cut_off) == ([1.0, 1.0, 500.0, 500.0], 0)
    stuck = EnvironmentSpec(SCRIPTED, options={"script": [(10**6, "terminated")]})
    played = play(stuck, episodes=6, num_envs=2, max_steps=2 * BLOCK).evaluated
    assert played is not None
    assert (len(played.returns), played.cut_off) == (2, 2)


@pytest.mark.slow
def test_ranks_play_the_same_episodes() -> None:
    """Three environments do not even divide evenly."""
    alone = evaluated_while_training(0, 1)
    assert run_on_ranks(evaluated_while_training, 2, 2) == [alone, alone]
    expected = play(SCRIPTED, episodes=11, num_envs=3).evaluated
    assert expected is not None
    assert expected.returns.tolist() == alone


@pytest.mark.slow
def test_whole_games_on_raw_rewards() -> None:
    """Against EnvPool itself: lives, clipped rewards and reset rows all come into it."""
    options = {"episodic_life": True, "reward_clip": True, "stack_num": 2}
    module = play(EnvironmentSpec("MsPacman-v5", options=options), CnnPolicy, episodes=2)
    assert module.evaluated is not None
    pool: Any = envpool.make_gymnasium(
        "MsPacman-v5", num_envs=2, seed=environment_seeds(3, 2, purpose="evaluation"), **options
    )
    observation, _ = pool.reset()
    games, total = [0.0, 0.0], np.zeros(2)
    over, ended, t = np.zeros(2, bool), np.zeros(2, bool), 0
    while not over.all():
        stream = generator(3, "evaluation actions", t // BLOCK)
        noise = module.distribution.noise(BLOCK, 2, generator=stream)[t % BLOCK]
        actions = module.act(torch.from_numpy(observation), noise)[0].numpy()
        observation, _, terminated, truncated, info = pool.step(actions)
        total += np.where(ended, 0.0, info["reward"])
        game_over = (info["terminated"] > 0) & ~ended
        for i in np.flatnonzero(game_over & ~over):
            games[i] = total[i]
        over |= game_over
        ended = terminated | truncated
        t += 1
    assert module.evaluated.returns.tolist() == games
    assert max(games) > 50  # clipped rewards would stay below the number of pills eaten


def test_deterministic_actions_are_the_mode() -> None:
    module = play("CartPole-v1", episodes=1, num_envs=1, deterministic=True)
    observations, noise = torch.randn(6, 4), module.distribution.noise(6)
    actions, parameters, _, _ = module.act_greedily(observations, noise)
    assert actions.tolist() == parameters.argmax(-1).tolist()
    again = EvaluationDataset(
        EnvironmentSpec("CartPole-v1"), Evaluation(1, 1, True), module, seed=3
    ).play()
    assert module.evaluated is not None
    assert again.returns.tolist() == module.evaluated.returns.tolist()


@pytest.mark.slow
def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(30):
        low, high = mean_interval(rng.exponential(size=60))
        covered += low <= 1.0 <= high
    assert 24 <= covered <= 30
    values = rng.normal(5.0, 2.0, size=400)
    low, high = mean_interval(values)  # nearly normal: mean ± 1.96 standard errors
    error = 1.96 * values.std(ddof=1) / 20
    np.testing.assert_allclose(
        [low, high], [values.mean() - error, values.mean() + error], atol=0.02
    )
    assert np.isnan(mean_interval(np.ones(1))).all()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


EVERY = ["evaluation.every_steps=128", "evaluation.episodes=3", "evaluation.num_envs=2"]
TRAIN = ["env=cartpole", "total_iterations=6", "compile=trace", "logger=csv"]


def training_rows(folder: Path) -> list[dict[str, str]]:
    times = ("steps_per_second",)
    return [
        {k: v for k, v in row.items() if k not in times and not k.startswith("evaluation/")}
        for row in rows(folder)
        if row["iteration"]
    ]


def evaluation_rows(folder: Path) -> list[tuple[str, str]]:
    return [
        (row["env_steps"], row["evaluation/return_mean"])
        for row in rows(folder)
        if row["evaluation/return_mean"]
    ]


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def test_training_is_the_same_with_evaluation(tmp_path: Path) -> None:
    plain = train_tiny(tmp_path / "plain", *TRAIN)
    evaluated = train_tiny(tmp_path / "evaluated", *TRAIN, *EVERY)
    assert [steps for steps, _ in evaluation_rows(evaluated)] == ["128", "256", "384"]
    assert training_rows(plain) == training_rows(evaluated)
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (plain, evaluated)
    )
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(tensors(ours[part]), tensors(theirs[part]), rtol=0, atol=0)


def test_resumed_run_evaluates_where_it_would_have(tmp_path: Path) -> None:
    exact = [*TRAIN, *EVERY, "exact_resume=true", "callbacks.checkpoint.every_n_iterations=1"]
    exact += [
        "compile=false",
        "algo.anneal=[]",
    ]  # a linear one would follow the shorter budget
    whole = train_tiny(tmp_path / "whole", *exact)
    parts = train_tiny(tmp_path / "parts", *exact, "total_iterations=3")
    train_tiny(parts, *exact, "resume=auto")
    assert training_rows(parts) == training_rows(whole)
    # the end of the first part is evaluated too
    expected = evaluation_rows(whole)
    assert [row for row in evaluation_rows(parts) if row[0] != "192"] == expected


class StopIn(Callback):
    """Sends SIGTERM in an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        if pl_module.counters.iterations + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("iteration", [4, 6], ids=["in the middle", "at the end"])
def test_an_evaluation_that_a_signal_came_before_is_made_up_for(
    iteration: int, tmp_path: Path
) -> None:
    words = [*TRAIN, *EVERY, "compile=false"]
    whole = train_tiny(tmp_path / "whole", *words)
    stop = f"+callbacks.stop={{_target_: {__name__}.StopIn, iteration: {iteration}}}"
    with pytest.raises(SystemExit):
        train_tiny(tmp_path / "parts", *words, stop)
    parts = tmp_path / "parts"
    before = [steps for steps, _ in evaluation_rows(parts)]
    train_tiny(parts, *words, "resume=auto")
    steps = [steps for steps, _ in evaluation_rows(parts)]
    assert before == ["128", "256", "384"][: iteration // 2 - 1]
    assert steps == [steps for steps, _ in evaluation_rows(whole)] == ["128", "256", "384"]


def test_command_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path / "run", "env=cartpole")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={run}", "episodes=7", "num_envs=2"])
    capsys.readouterr()
    command.main()
    printed = capsys.readouterr().out
    path = run / "checkpoints" / "last.evaluation.json"
    result = json.loads(path.read_text())
    assert str(path) in printed
    assert len(result["returns"]) == result["episodes"] == 7
    assert result["return_mean"] == pytest.approx(np.mean(result["returns"]))
    assert result["return_low"] < result["return_mean"] < result["return_high"]
    assert result["returns"] == result["lengths"]  # CartPole gives 1 a step
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]  # no folder of its own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected run=FOLDER or ckpt_path=FILE"),
        (["run=nowhere"], "run=nowhere is not a folder"),
        (["episodes=0"], "episodes=0 is out of range, expected at least 1"),
        (["max_steps=0"], "max_steps=0 is out of range, expected at least 1"),
        (["episode=5"], "use +episode=5; did you mean 'episodes'?"),  # Hydra's, and our hint
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_envs=0"):
        Evaluation(num_envs=0)
    with pytest.raises(ConfigurationError, match="deterministic='yes'"):
        Evaluation(deterministic="yes")  # type: ignore[arg-type]
    for episodes, num_envs in ((10**12, 1), (10**9, 10**9)):
        with pytest.raises(ConfigurationError, match=r"an evaluation of .* GB of memory"):
            Evaluation(episodes, num_envs)


def test_whole_numbers_may_be_written_as_floats() -> None:
    """As a command line's ``1e2`` is."""
    assert Evaluation(episodes=1e1, num_envs=4.0).shares() == [3, 3, 2, 2]  # type: ignore[arg-type]
    spec = EnvironmentSpec("CartPole-v1", num_pools=2.0, num_threads=1e0)  # type: ignore[arg-type]
    assert [type(n) for n in (spec.num_pools, spec.num_threads)] == [int, int]
