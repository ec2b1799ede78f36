"""The command line as a user meets it: folders, resuming, sweeps, configs of one's own."""

from __future__ import annotations

import csv
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning import __main__ as command_line
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import train

pytestmark = pytest.mark.heavy

TINY = ["debug=default", "trainer.accelerator=cpu"]
Command = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words])
        command_line.main()

    return run


@pytest.mark.parametrize("name", ["it's x=1 [ü]", "a,b", "1e3", "a b", "#{x}", '"q"'])
def test_a_folder_of_any_name_is_one_word(name: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / name).mkdir()
    command(*TINY, "hydra.run.dir=plain", "compile=false")
    for part in (tmp_path / "plain").iterdir():
        part.rename(tmp_path / name / part.name)
    command(*TINY, "compile=false", f"run={name}", "total_iterations=4")
    assert [row["iteration"] for row in rows(tmp_path / name)] == ["1", "2", "3", "4"]


def test_a_word_that_names_no_path_stays_hydras(tmp_path: Path, command: Command) -> None:
    command(*TINY, "compile=false", r"hydra.run.dir='it\'s'", "total_iterations=1")
    assert (tmp_path / "it's" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("key", ["run=first", "ckpt_path=first/checkpoints/last.ckpt"])
def test_relative_paths_are_from_where_the_command_was_typed(
    key: str, tmp_path: Path, command: Command
) -> None:
    command(*TINY, "compile=false", "hydra.run.dir=first")
    try:
        command(*TINY, "compile=false", key, "total_iterations=4", "hydra.job.chdir=true")
    finally:
        os.chdir(tmp_path)
    checkpoints = sorted(tmp_path.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(checkpoints[-1], weights_only=True)["global_step"] == 4


def rows(folder: str | Path) -> list[dict[str, str]]:
    with (Path(folder) / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_folder_of_a_run(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command(*TINY, "env=cartpole", "hydra.run.dir=run", "tags=[a,b]")
    for file in (
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        ".hydra/resolved.yaml",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "csv/metrics.csv",
        "train.log",
    ):
        assert (Path("run") / file).is_file(), file
    assert list(Path("run/tensorboard").glob("events.out.tfevents.*"))
    assert [row["env_steps"] for row in rows("run")] == ["64", "128", "192"]

    resolved = OmegaConf.load("run/.hydra/resolved.yaml")
    assert resolved.trainer.default_root_dir == str(Path("run").absolute())
    assert list(resolved.tags) == ["a", "b"]
    printed = capsys.readouterr().out
    for saved in ("config_tree.txt", "plan.txt"):
        text = Path("run", saved).read_text()
        assert [line.rstrip() for line in text.splitlines()][1] in printed
    assert "id: CartPole-v1" in Path("run/config_tree.txt").read_text()
    assert "64 (64 per device)" in Path("run/plan.txt").read_text()


def test_default_folder_is_named_after_task_and_environment(command: Command) -> None:
    command(*TINY, "env=gymnasium", "env.id=gymnasium.envs:CartPole-v1", "task_name=mine")
    (folder,) = Path("outputs/mine/gymnasium.envs-CartPole-v1").iterdir()
    assert (folder / "checkpoints/last.ckpt").is_file()


def test_resume_continues_the_count(command: Command) -> None:
    command(*TINY, "env=cartpole", "hydra.run.dir=run")
    words = ["env=cartpole", "hydra.run.dir=run", "ckpt_path=run/checkpoints/last.ckpt"]
    command(*TINY, *words, "total_iterations=5")
    assert [row["iteration"] for row in rows("run")] == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
def test_sweep(command: Command) -> None:
    command(*TINY, "seed=1,2", "hydra.sweep.dir=sweep", "-m")
    assert rows("sweep/0") != rows("sweep/1")
    first = OmegaConf.load("sweep/0/.hydra/resolved.yaml")
    assert (first.seed, first.algo.seed) == (1, 1)


def test_fast_dev_run_writes_no_checkpoint(command: Command) -> None:
    command("debug=fdr", "trainer.accelerator=cpu", "hydra.run.dir=run")
    assert not list(Path("run").rglob("*.ckpt"))


@pytest.mark.parametrize(
    "words",
    [
        ["callbacks=none", "logger=none"],
        ["trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false"],
        ["callbacks.progress=null", "logger.tensorboard=null"],
    ],
)
def test_parts_can_be_left_out(words: list[str], command: Command) -> None:
    command(*TINY, "hydra.run.dir=run", *words)
    wanted = words[0] == "callbacks.progress=null"
    assert bool(list(Path("run").rglob("*.ckpt"))) is wanted


def test_configs_of_ones_own(command: Command, tmp_path: Path) -> None:
    own = tmp_path / "own" / "env"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [cartpole, _self_]\nenv:\n  reward_scale: 0.5\n"
    )
    command(*TINY, "env=mine", "hydra.run.dir=run", "--config-dir", "own")
    resolved = OmegaConf.load("run/.hydra/resolved.yaml")
    assert (resolved.env.id, resolved.env.reward_scale) == ("CartPole-v1", 0.5)


def test_small_network_computes_on_one_thread(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(train.Trainer, "fit", lambda *_, **__: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(torch, "get_num_threads", torch.get_num_threads)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        command(*TINY, "env=cartpole", "hydra.run.dir=1")
        assert "1 CPU thread" in capsys.readouterr().out
        assert torch.get_num_threads() == 2
        assert "OMP_NUM_THREADS" not in os.environ
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        command(*TINY, "env=cartpole", "hydra.run.dir=2")
        assert "CPU thread" not in capsys.readouterr().out
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


@pytest.mark.slow
def test_two_devices_print_once(tmp_path: Path) -> None:
    words = ["-m", "ppo1_lightning", *TINY, "trainer=ddp", "trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, *words, "hydra.run.dir=run"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CartPole-v1") == 1
    assert done.stdout.count("optimizer steps ") == 1
    assert len(rows(tmp_path / "run")) == 3
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Pong-v5", "Pong-v5"),
        ("ALE/Pong-v5", "ALE-Pong-v5"),
        ("my.module:Env-v0", "my.module-Env-v0"),
        ("../../etc", "etc"),
        ("", "unnamed"),
    ],
)
def test_slug(name: str, folder: str) -> None:
    assert cli.slug(name) == folder


def test_environment_variable_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    with cli.environment_variable("A", None), cli.environment_variable("B", "2"):
        assert "A" not in os.environ
        assert os.environ["B"] == "2"
    assert os.environ["A"] == "1"
    assert "B" not in os.environ


def test_a_record_that_is_named_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are that come over from another process: a library may make them in a run."""
    monkeypatch.setattr(logging, "_logRecordFactory", cli._without_control_characters)
    assert logging.makeLogRecord({"name": "x", "msg": "a"}).getMessage() == "a"
    record = logging.getLogger("ppo1_lightning").makeRecord(
        "ppo1_lightning.x", logging.INFO, "", 0, "%s", ("a\x1b",), None
    )
    assert record.getMessage() == r"a\x1b"


OF_A_FILE = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EINVAL, "Invalid argument", "x.csv"),
    PermissionError(errno.EACCES, "Permission denied", "x.csv"),
]
OF_NONE = [
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    socket.gaierror(errno.ENOENT, "Name or service not known"),  # its number is another thing
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    OSError("own words"),
]


@pytest.mark.parametrize("error", [*OF_A_FILE, *OF_NONE], ids=repr)
def test_which_errors_are_of_a_file(error: OSError) -> None:
    of_a_file = error in OF_A_FILE
    assert cli.is_of_a_file(error) == of_a_file
    assert ("could not be read or written" in cli.explain(error)) == of_a_file
    if not of_a_file:
        assert cli.explain(error) == str(error)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_broken_pipe_is_a_lost_rank_only_where_there_are_others(
    ranks: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.launch, "processes_started", lambda: ranks)

    def fail(config: DictConfig) -> None:
        raise RuntimeError("Broken pipe")

    with pytest.raises(SystemExit):
        cli.told(fail, OmegaConf.create())
    told = capsys.readouterr().err
    assert ("another rank ended" in told) == (ranks > 1)
    assert ("Traceback" in told) == (ranks == 1)


def test_a_thread_that_cannot_write_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """TensorBoard's, on a full disk, in whatever process a job runs."""

    def write(config: DictConfig) -> None:
        full = OSError(errno.ENOSPC, "No space left on device", "events\x1b[1m")
        thread = threading.Thread(target=partial(fail_with, full))
        thread.start()
        thread.join()

    def fail_with(error: Exception) -> None:
        raise error

    threading.excepthook = threading.__excepthook__
    cli.told(write, OmegaConf.create())
    line = "events\\x1b[1m could not be read or written (No space left on device)\n"
    assert capsys.readouterr().err == line


def test_control_characters_in_a_log_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Of a rank, too, which Hydra has not started."""
    logging.setLogRecordFactory(logging.LogRecord)

    def name(config: DictConfig) -> None:
        logging.getLogger("ppo1_lightning").warning("named %s", "a\x1bb")

    cli.told(name, OmegaConf.create())
    assert caplog.messages == ["named a\\x1bb"]


@pytest.mark.parametrize("full", ["", "1"])
def test_so_are_they_where_errors_are_shown_in_full(
    full: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", full)
    logging.setLogRecordFactory(logging.LogRecord)
    command(*TINY, "env=cartpole", "compile=false", "total_iterations=1")
    record = logging.getLogRecordFactory()("ppo1_lightning", 30, "", 0, "a\x1bb", (), None)
    assert record.getMessage() == "a\\x1bb"
