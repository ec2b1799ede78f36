"""Every example runs as its README says."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ppo1_lightning import __main__ as command_line

pytestmark = pytest.mark.heavy

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = re.findall(r"\| `python ([^`]+)` \|", (EXAMPLES / "README.md").read_text("utf-8"))
TINY = {
    "own environment": ["num_envs=4", "num_steps=64", "total_steps=512"],
    "own policy": ["num_envs=4", "num_steps=64", "total_steps=512"],
    "own memory": ["num_envs=4", "num_steps=64", "total_steps=512"],
    "own callback": ["num_envs=4", "num_steps=64", "callbacks.stop.score=10"],
    "own config directory": ["callbacks.stop.score=-100"],
}
"""Further arguments of the commands of our command line, in the order of the table."""


Command = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process, in an empty folder with the examples on its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words])
        command_line.main()

    return run


def run(folder: Path, *words: str) -> str:
    """Run Python in ``folder``, with the examples on its path, and return what it printed."""
    paths = [str(EXAMPLES), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words_of(name: str) -> list[str]:
    """Return a command of the table with small sizes, to be run in another folder."""
    module, package, *words = shlex.split(COMMANDS[list(TINY).index(name)])
    assert (module, package) == ("-m", "ppo1_lightning")
    words = [str(EXAMPLES / "conf") if word == "conf" else word for word in words]
    tiny = [*TINY[name], "compile=false", "algo.minibatch_size=64", "hydra.run.dir=run"]
    # later ones win, except where a key may be given once only
    return [word for word in words if not word.startswith("total_steps")] + tiny


@pytest.mark.parametrize("name", list(TINY)[:-1])
def test_command_line(name: str, command: Command, tmp_path: Path) -> None:
    command(*words_of(name))
    trained = rows(tmp_path / "run")
    if name == "own callback":  # ends it in the first iteration with an episode
        assert len(trained) < 4
    else:
        assert trained[-1]["env_steps"] == "512"


@pytest.mark.slow
def test_what_a_config_directory_has_trained_can_be_evaluated(
    command: Command, tmp_path: Path
) -> None:
    """The policy, environment and callback are the user's own; another process finds them again."""
    command(*words_of("own config directory"))
    assert len(rows(tmp_path / "run")) < 4
    run(tmp_path, "-m", "ppo1_lightning", "evaluate", "run=run", "trust=true", "episodes=10")
    report = json.loads((tmp_path / "run/checkpoints/last.evaluation.json").read_text("utf-8"))
    assert report["environment"] == "corridor:Corridor-v0"


def test_the_table_has_all_examples() -> None:
    assert len(COMMANDS) == len(TINY) + 4
    named = " ".join(COMMANDS)
    for file in EXAMPLES.glob("*.py"):
        assert file.stem in named


@pytest.mark.parametrize("trainer", ["default", pytest.param("ddp", marks=pytest.mark.slow)])
def test_lightning_project(trainer: str, tmp_path: Path) -> None:
    script = EXAMPLES / "lightning_project" / "train.py"
    folder = tmp_path / "run"
    words = [f"trainer={trainer}", "data.total_steps=4096", f"hydra.run.dir={folder}"]
    run(tmp_path, str(script), *words)
    assert {"last.ckpt"} < {file.name for file in (folder / "checkpoints").iterdir()}
    (log,) = (folder / "csv").rglob("metrics.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    ends = ["1024", "2048", "3072", "4096"]
    logged = {"reward_mean": ends, "kl": ends}  # theirs, ours; a callback's, when one begins:
    for metric, steps in {**logged, "lr-TensorFlowAdam": ["0", *ends[:3]]}.items():
        assert [row["step"] for row in rows if row[metric]] == steps, metric
    assert any(row["evaluation/return_mean"] for row in rows)
    assert "mean return of the best checkpoint" in (folder / "train.log").read_text("utf-8")


def test_lightning_cli(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    folder = EXAMPLES / "lightning_cli"
    words = ["fit", "--config", str(folder / "cartpole.yaml"), "--data.total_steps", "2048"]
    theirs = ["--optimizer", "RMSprop", "--optimizer.lr", "2e-3", "--lr_scheduler", "ExponentialLR"]
    run(tmp_path, str(folder / "main.py"), *words, *theirs, "--lr_scheduler.gamma", "0.5")
    (log,) = (tmp_path / "lightning_logs").rglob("metrics.csv")
    with log.open() as file:
        rates = [row["learning_rate"] for row in csv.DictReader(file) if row["learning_rate"]]
    assert list(map(float, rates)) == [2e-3, 1e-3]


def test_notebook(tmp_path: Path) -> None:
    pytest.importorskip("nbconvert")
    words = ["--to", "notebook", "--execute", "--output-dir", str(tmp_path)]
    run(tmp_path, "-m", "nbconvert", *words, str(EXAMPLES / "notebook.ipynb"))
    cells = json.loads((tmp_path / "notebook.ipynb").read_text("utf-8"))["cells"]
    total = float("".join(cells[-1]["outputs"][0]["data"]["text/plain"]))  # a list of lines
    assert total > 30


@pytest.mark.slow
def test_library_use(tmp_path: Path) -> None:
    assert "mean return of the last 100 episodes" in run(tmp_path, str(EXAMPLES / "library_use.py"))
