"""Runs that are killed and continued: every step accounted for, one continuous log."""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ppo1_lightning import ConfigurationError
from ppo1_lightning import __main__ as command_line
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import train
from ppo1_lightning.runs import resume

pytestmark = pytest.mark.heavy

STEPS = 64  # of an iteration
OPTIMIZER_STEPS = 4

TINY = [
    "env=cartpole",
    "algo=classic",
    "debug=default",
    "algo.update_epochs=2",
    "trainer.accelerator=cpu",
    "compile=false",
]
Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process, in an empty folder; return the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *TINY, *words])
        try:
            command_line.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def load(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def check_whole(folder: Path, iterations: int) -> None:
    """Check that a run has done every iteration once, as if it had never been stopped."""
    checkpoint = load(folder)
    entry = checkpoint["ppo1_lightning"]
    counters = entry["counters"]
    assert counters["iterations"] == checkpoint["global_step"] == iterations
    assert counters["env_steps"] == STEPS * iterations
    steps = {int(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()}
    assert steps == {OPTIMIZER_STEPS * iterations}  # of Adam
    normalizer = checkpoint["state_dict"]["policy.observation_normalizer._extra_state"]
    assert normalizer["count"].item() == pytest.approx(counters["transitions"] + 1e-2)

    rows = kills.rows(folder)
    assert [int(row["env_steps"]) for row in rows] == [STEPS * (i + 1) for i in range(iterations)]
    assert [int(row["iteration"]) for row in rows] == [i + 1 for i in range(iterations)]
    episodes = [int(row["episodes"]) for row in rows]
    assert episodes == sorted(episodes)
    assert episodes[-1] == counters["episodes"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == [pytest.approx(1e-3 * (1 - i / iterations)) for i in range(iterations)]

    events = kills.events(folder)
    assert set(events) >= {"loss/value", "kl", "episode_return_mean", "env_steps"}
    for tag, points in events.items():
        shown = [(int(row["env_steps"]), float(row[tag])) for row in rows]
        for (step, value), (expected_step, expected) in zip(points, shown, strict=True):
            assert step == expected_step
            assert value == pytest.approx(expected, rel=1e-5) or math.isnan(expected)


@pytest.mark.parametrize(
    ("kill_count", "iterations"),
    [
        pytest.param(3, 240, marks=pytest.mark.slow),
        pytest.param(20, 1200, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_killed_again_and_again(tmp_path: Path, kill_count: int, iterations: int) -> None:
    folder, words = tmp_path / "run", [f"total_iterations={iterations}"]
    chance = random.Random(0)
    for _ in range(kill_count):
        kills.kill_at_random(folder, chance, *words)
    assert kills.finish(folder, *words) == 0, kills.output_of(folder)
    assert kills.output_of(folder).count("continuing from") == kill_count
    check_whole(folder, iterations)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train three iterations, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = [*TINY, f"hydra.run.dir={folder}", "callbacks.checkpoint.every_n_iterations=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ppo1-lightning", *words])
        command_line.main()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_refused_start_leaves_the_folder_as_it_was(run: Path, command: Command) -> None:
    """Hydra has written its files by then."""
    before = {file: file.read_bytes() for file in (run / ".hydra").glob("*.yaml")}
    assert command(f"run={run}", "algo=trpo_classic") == 2
    assert command(f"run={run}", "num_envs=3", "mpi_workers=2") == 2
    assert {file: file.read_bytes() for file in (run / ".hydra").glob("*.yaml")} == before


def test_starts_fresh_where_there_is_nothing(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("hydra.run.dir=run", "resume=auto") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    check_whole(Path("run"), 3)


def test_finished_run_says_so_in_one_line(
    run: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*.ckpt")}
    before[run / "csv" / "metrics.csv"] = (run / "csv" / "metrics.csv").read_bytes()
    assert command(f"hydra.run.dir={run}", "resume=auto") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "nothing to train" in line]
    assert len(told) == 1
    assert "3 iterations" in told[0]
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("how", ["resume=auto", "run", "ckpt_path"])
def test_finished_run_is_extended(how: str, run: Path, command: Command) -> None:
    words = {
        "resume=auto": ["resume=auto", f"hydra.run.dir={run}"],
        "run": [f"run={run}"],
        "ckpt_path": [f"ckpt_path={run}/checkpoints/last.ckpt", f"hydra.run.dir={run}"],
    }[how]
    assert command("total_iterations=5", "algo.anneal=[]", *words) == 0
    assert load(run)["ppo1_lightning"]["counters"]["env_steps"] == 5 * STEPS
    steps = [STEPS * (i + 1) for i in range(5)]
    assert [int(row["env_steps"]) for row in kills.rows(run)] == steps
    assert [step for step, _ in kills.events(run)["kl"]] == steps


@pytest.mark.parametrize("spoil", ["cut", "flip", "empty"])
def test_damaged_checkpoint_is_set_aside(
    spoil: str, run: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    (run / "checkpoints" / "previous.ckpt").unlink()  # a second name of a file that is cut below
    shutil.copy(last.with_name("best.ckpt"), last.with_name("previous.ckpt"))
    previous = load(run, "previous.ckpt")["ppo1_lightning"]["counters"]["iterations"]
    if spoil == "flip":
        content[len(content) // 2] ^= 0x10
    last.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flip": content}[spoil])
    damaged = last.read_bytes()
    assert command(f"hydra.run.dir={run}", "resume=auto", "total_iterations=5") == 0
    out = capsys.readouterr().out
    assert "damaged" in out
    assert f"previous.ckpt, {previous * STEPS} steps" in out
    assert last.with_name("last.ckpt.damaged").read_bytes() == damaged
    assert [int(row["iteration"]) for row in kills.rows(run)] == [1, 2, 3, 4, 5]


def test_nothing_is_started_where_no_checkpoint_can_be_read(
    run: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (run / "checkpoints" / name).write_bytes(b"torn")
    assert command(f"hydra.run.dir={run}", "resume=auto") == 2
    assert "no checkpoint in" in capfd.readouterr().err
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == b"torn"


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["resume=atuo"], "'auto'"),
        (["run=nowhere"], "run=nowhere"),
        (["resume=auto", "ckpt_path=x.ckpt"], "expected one of them"),
        (["run=."], "run=. and hydra.run.dir=new are two folders"),
        (["init_from=x.ckpt", "ckpt_path=x.ckpt"], "expected one of them"),
        (["init_from=nowhere.ckpt"], "init_from=nowhere.ckpt does not exist"),
    ],
)
def test_contradictions(
    words: list[str], fragment: str, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("hydra.run.dir=new", *words) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert fragment in errors[0]
    assert not Path("nowhere").exists()
    assert not list(Path().rglob("*.ckpt"))


def test_folder_without_a_run_is_not_continued(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert command("run=empty") == 2
    assert "run=empty holds no checkpoint" in capfd.readouterr().err


@pytest.mark.slow
def test_sweep_goes_on(command: Command) -> None:
    words = ["seed=1,2", "hydra.sweep.dir=sweep"]
    command(*words, "-m")
    assert command(*words, "-m") == 2
    assert command("seed=1,2", "run=sweep/0", "-m") == 2
    assert command(*words, "resume=auto", "total_iterations=4", "-m") == 0
    for job in ("0", "1"):
        assert [row["iteration"] for row in kills.rows(Path("sweep", job))] == ["1", "2", "3", "4"]


# -------------------------------------------------------------------- from old weights


def test_new_run_from_old_weights(run: Path, command: Command) -> None:
    """Weights and normaliser are the old ones, Adam and counters are new, the old run stays."""
    old = run / "checkpoints" / "last.ckpt"
    before = old.read_bytes()
    words = [f"init_from={old}", "algo.learning_rate=0", "hydra.run.dir=new"]
    assert command(*words) == 0
    check_new(Path("new"), run, iterations=3)
    assert old.read_bytes() == before
    # the same command continues the new run: the old weights are not loaded again
    assert command(*words, "resume=auto", "total_iterations=5") == 0
    check_new(Path("new"), run, iterations=5)


def check_new(new: Path, old: Path, iterations: int) -> None:
    ours, theirs = load(new), load(old)
    counters = ours["ppo1_lightning"]["counters"]
    assert counters["iterations"] == iterations
    assert len(kills.rows(new)) == iterations
    states = ours["optimizer_states"][0]["state"].values()
    assert {int(state["step"]) for state in states} == {OPTIMIZER_STEPS * iterations}
    name = "policy.observation_normalizer._extra_state"
    count = theirs["state_dict"][name]["count"].item() + counters["transitions"]
    assert ours["state_dict"][name]["count"].item() == pytest.approx(count)
    weights = [k for k in ours["state_dict"] if "normalizer" not in k]
    assert len(weights) > 4
    for name in weights:
        assert torch.equal(ours["state_dict"][name], theirs["state_dict"][name])


def test_old_weights_in_another_environment(run: Path, command: Command) -> None:
    """Of the same spaces; normalised returns, which the old run had not, start from nothing."""
    words = [f"init_from={run}/checkpoints/best.ckpt", "env.id=CartPole-v0", "hydra.run.dir=new"]
    assert command(*words, "algo.normalize_returns=true") == 0
    checkpoint = load(Path("new"))
    assert checkpoint["ppo1_lightning"]["environment"] == "CartPole-v0"
    count = checkpoint["state_dict"]["reward_normalizer._extra_state"]["count"].item()
    transitions = checkpoint["ppo1_lightning"]["counters"]["transitions"]
    assert count == pytest.approx(transitions, abs=1e-3)


def test_returns_stay_normalised(command: Command) -> None:
    words = ["algo.normalize_returns=true", "hydra.run.dir=old"]
    assert command(*words) == 0
    words = ["algo.normalize_returns=true", "hydra.run.dir=new"]
    assert command(*words, "init_from=old/checkpoints/last.ckpt") == 0
    counts = [
        load(Path(name))["state_dict"]["reward_normalizer._extra_state"]["count"].item()
        for name in ("old", "new")
    ]
    transitions = load(Path("new"))["ppo1_lightning"]["counters"]["transitions"]
    assert counts[1] == pytest.approx(counts[0] + transitions, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["policy.hidden_size=8"], "another policy"),
        (["env=acrobot"], "another space"),
    ],
)
def test_weights_that_do_not_fit(
    words: list[str],
    fragment: str,
    run: Path,
    command: Command,
    capfd: pytest.CaptureFixture[str],
) -> None:
    old = run / "checkpoints" / "last.ckpt"
    assert command("hydra.run.dir=new", *words, f"init_from={old}") == 2
    assert fragment in capfd.readouterr().err


def test_rows_without_any_checkpoint_are_done_again(command: Command, tmp_path: Path) -> None:
    words = ("resume=auto", f"hydra.run.dir={tmp_path}/run", "total_iterations=3")
    words = (*words, "total_steps=null")
    assert command(*words) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if killed before the first
    assert command(*words) == 0
    steps = [int(row["env_steps"]) for row in kills.rows(tmp_path / "run")]
    assert steps == [STEPS, 2 * STEPS, 3 * STEPS]
    for points in kills.events(tmp_path / "run").values():
        assert [step for step, _ in points] == steps


def test_what_is_settled_stays_settled(command: Command, tmp_path: Path) -> None:
    """Settling a settled config once more changes nothing."""
    budget = ("total_iterations=2", "total_steps=null")
    assert command(*budget, f"hydra.run.dir={tmp_path}/run") == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    config = OmegaConf.create(
        {
            "resume": "auto",
            "run": None,
            "ckpt_path": None,
            "init_from": str(last),
            "logger": {"csv": {"purge_step": None}},
        }
    )
    settled, content = resume.settle(config, tmp_path / "run")
    again, content_again = resume.settle(settled, tmp_path / "run")
    assert settled == again
    assert settled.ckpt_path == str(last)
    assert settled.logger.csv.purge_step == 2 * STEPS + 1
    assert content is not None
    assert content_again is not None


def test_a_rank_starts_where_its_launcher_has_said(run: Path) -> None:
    """From the beginning here, whatever the folder holds by then."""
    with initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        words = [*TINY, "logger=csv", f"trainer.default_root_dir={run}"]
        config = compose("train", words)
    with pytest.raises(ConfigurationError, match="holds a run already"):
        train.train(config)
    train.fit(config)
    assert [int(row["iteration"]) for row in kills.rows(run)][-3:] == [1, 2, 3]
