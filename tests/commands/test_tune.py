"""Searches: what a trial's score is, pruning, and a study that is killed and resumed."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from ppo1_lightning import __main__ as command_line
from ppo1_lightning.commands import tune
from ppo1_lightning.runs.report import groups

pytestmark = pytest.mark.heavy

SEARCH = """# @package _global_
defaults: [optuna, _self_]
hparams_search:
  n_trials: 2
  seeds: [1, 2]
  pruner: {n_startup_trials: 0, n_warmup_steps: 0}
"""
PRUNES_ALL = """# @package _global_
hparams_search:
  n_trials: 2
  seeds: [1, 2]
  direction: maximize
  study_name: study
  storage: sqlite:///${trainer.default_root_dir}/study.db
  reports: 4
  sampler: {_target_: optuna.samplers.RandomSampler}
  pruner: {_target_: optuna.pruners.ThresholdPruner, lower: 1000}
  search_space:
    algo.gamma: {_target_: optuna.distributions.FloatDistribution, low: 0.9, high: 1.0}
"""
TINY = [
    "debug=default",
    "trainer.accelerator=cpu",
    "logger=csv",
    "compile=false",
    "hydra.run.dir=study",
]
TINY += ["--config-dir", "own"]
Command = Callable[..., None]

devices = pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a search in this process, in a folder with two searches of the user's own."""
    monkeypatch.chdir(tmp_path)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # for ranks
    group = tmp_path / "own" / "hparams_search"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text(SEARCH)
    (group / "prunes_all.yaml").write_text(PRUNES_ALL)
    (group / "misplaced.yaml").write_text(SEARCH.replace("# @package _global_", ""))

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["tune", *words, *TINY])
        tune.main()

    return run


def test_the_training_command_searches_too(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "main", command_line.main)
    seeded = ["hparams_search=mine", "hparams_search.seeds=[1]", "+hparams_search.sampler.seed=0"]
    for count in (1, 2):
        command(*seeded, f"hparams_search.n_trials={count}", "total_iterations=2")
    first, second = trials()
    assert first.params != second.params  # a study goes on with its random numbers too
    assert Path("study/best.yaml").is_file()


def test_no_sampler_is_optunas_own(command: Command) -> None:
    command("hparams_search=mine", "hparams_search.n_trials=0", "hparams_search.sampler=null")
    assert trials() == []


def trials() -> list[FrozenTrial]:
    return optuna.load_study(study_name="study", storage="sqlite:///study/study.db").trials


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def last_return(folder: Path) -> float:
    return float(rows(folder)[-1]["episode_return_mean"])


@pytest.mark.slow
def test_score_is_the_mean_over_seeds(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    pruner = ["hparams_search.pruner.n_startup_trials=9"]
    command("hparams_search=mine", "algo.update_epochs=1", *pruner)
    assert [trial.state for trial in trials()] == 2 * [TrialState.COMPLETE]
    for trial in trials():
        runs = [Path(f"study/trial_{trial.number}/seed_{seed}") for seed in (1, 2)]
        returns = [last_return(run) for run in runs]
        assert returns[0] != returns[1]
        assert trial.value == pytest.approx(sum(returns) / 2)
        for run in runs:
            config = OmegaConf.load(run / ".hydra" / "resolved.yaml")
            assert config.algo.learning_rate == trial.params["algo.learning_rate"]
            assert config.algo.update_epochs == trial.params["algo.update_epochs"]
    best = OmegaConf.load("study/best.yaml")
    assert best.score == max(trial.value or 0 for trial in trials())
    printed = capsys.readouterr().out
    assert f"best: {best.score:.2f} by trial {best.trial}" in printed
    report = Path("study/report.html")
    assert str(report) in printed
    page = report.read_text()
    for trial in trials():
        assert f"learning_rate {groups.plain(trial.params['algo.learning_rate'])}" in page

    command("hparams_search=mine", "algo.update_epochs=1", *pruner)  # is finished
    assert len(trials()) == 2
    command("hparams_search=mine", "algo.update_epochs=1", *pruner, "hparams_search.n_trials=3")
    assert len(trials()) == 3


@devices
def test_pruned_runs_end_early(devices: int, command: Command) -> None:
    words = ["hparams_search.n_trials=1", f"trainer.devices={devices}", "total_iterations=8"]
    command("hparams_search=prunes_all", *words)
    (trial,) = trials()
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1]  # after a quarter of the budget
    assert len(rows(Path("study/trial_0/seed_1"))) == 2
    assert not Path("study/trial_0/seed_2").exists()
    assert not Path("study/best.yaml").exists()


@pytest.mark.slow
def test_killed_study_goes_on(command: Command, tmp_path: Path) -> None:
    words = ["hparams_search=mine", "hparams_search.n_trials=3", "total_iterations=60", *TINY]
    process = subprocess.Popen(
        [sys.executable, "-m", "ppo1_lightning", "tune", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
    )
    try:
        wait_for("study/trial_0/seed_1/csv/metrics.csv", process)
        with pytest.raises(SystemExit):
            command("hparams_search=mine")  # while the other one works on it
        wait_for("study/trial_1/seed_1/csv/metrics.csv", process)
    finally:
        process.kill()
        process.communicate()
    first, interrupted = trials()
    assert interrupted.state == TrialState.RUNNING

    command("hparams_search=mine", "hparams_search.n_trials=3", "total_iterations=3")
    again = trials()
    assert again[0] == first
    done = {TrialState.COMPLETE, TrialState.PRUNED}
    assert [trial.state in done for trial in again] == [True, False, True, True]
    assert again[2].params == interrupted.params
    assert again[3].params != interrupted.params


def wait_for(file: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not Path(file).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_diverging_trials_do_not_end_the_study(devices: int, command: Command) -> None:
    words = [f"trainer.devices={devices}", f"hparams_search.n_trials={3 - devices}"]
    command("hparams_search=prunes_all", "algo.learning_rate=1e30", *words)
    assert [trial.state for trial in trials()] == (3 - devices) * [TrialState.PRUNED]


@devices
def test_mistakes_in_training_end_the_study(devices: int, command: Command) -> None:
    words = ["env=gymnasium", "env.id=test_errors_told:NanReward-v0", "num_envs=2"]
    with pytest.raises(SystemExit) as exit_:
        command("hparams_search=prunes_all", *words, f"trainer.devices={devices}")
    assert exit_.value.code == 2
    (trial,) = trials()
    assert trial.state == TrialState.FAIL  # not among those that count


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([], "hparams_search=optuna"),
        (["hparams_search=optun"], "'optuna'"),
        (["hparams_search=mine", "num_envs=0"], "at least 1"),
        (["hparams_search=mine", "+hparams_search.seed=3"], "did you mean 'seeds'"),
        (["hparams_search=misplaced"], "'# @package _global_'"),
        (["hparams_search=mine", "optimized_metric=episode_return"], "'episode_return_mean'"),
    ],
)
def test_mistakes(
    words: list[str], fragment: str, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command(*words)
    assert exit_.value.code == 2
    errors = capfd.readouterr().err
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert fragment in line
