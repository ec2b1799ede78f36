"""Runs that are told to stop, lose a process or fill the disk: nothing that was saved is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kills
import pytest
import torch

pytestmark = pytest.mark.heavy

LONG = "total_iterations=100000"
RARELY = "callbacks.checkpoint.every_n_iterations=1000000"
TWO = ["trainer=ddp", "trainer.accelerator=cpu"]


def test_a_signal_while_nothing_is_trained_stops_at_once(tmp_path: Path) -> None:
    """As while an evaluation plays, which would take minutes; it is made up for later."""
    words = ["compile=false", LONG, "evaluation.every_steps=1", "evaluation.episodes=2000000"]
    process = kills.start(tmp_path / "run", *words, "callbacks.checkpoint.every_n_iterations=1")
    try:
        kills.wait_for_rows(tmp_path / "run", process)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    finally:
        kills.kill(process)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["ppo1_lightning"]["owes_evaluation"]


class Run:
    """A run that is under way, in a folder of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.process = kills.start(folder, LONG, "compile=false", *words)
        kills.wait_for_rows(folder, self.process)
        if RARELY in words:
            return
        deadline = time.monotonic() + 60
        while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def tell(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ranks(self) -> list[int]:
        """Return the process ids of all ranks, which the process that was started waits for."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if is_rank(child)]  # in the order of their start

    def wait(self, seconds: float = 30) -> int:
        """Return the exit status, negative of a signal."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.output()}") from None

    def output(self) -> str:
        return kills.output_of(self.folder)

    def checkpoint(self) -> dict[str, Any]:
        return torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)

    def iterations(self) -> int:
        """Return the iteration of the last checkpoint."""
        checkpoint = self.checkpoint()
        iterations = checkpoint["ppo1_lightning"]["counters"]["iterations"]
        assert checkpoint["global_step"] == iterations
        return iterations

    def rows(self) -> int:
        return len(kills.rows(self.folder))

    def goes_on(self, *words: str) -> None:
        """Continue for two iterations after the last checkpoint."""
        until = self.iterations() + 2
        assert kills.finish(self.folder, f"total_iterations={until}", *words) == 0, self.output()
        assert self.iterations() == self.rows() == until


def is_rank(pid: str) -> bool:
    """Tell a rank from other children, such as Python's tracker of semaphores."""
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _no_processes_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    started: list[Run] = []
    make = Run.__init__

    def remember(run: Run, *args: Any) -> None:
        started.append(run)
        make(run, *args)

    monkeypatch.setattr(Run, "__init__", remember)
    yield
    for run in started:
        if hasattr(run, "process"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_one_signal_saves_the_iteration(number: int, status: int, folder: Path) -> None:
    run = Run(folder, RARELY)
    run.tell(number)
    assert run.wait() == status, run.output()
    assert "Traceback" not in run.output()
    assert run.iterations() == run.rows() > 0
    run.goes_on()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
@pytest.mark.slow
def test_second_signal_stops_at_once(number: int, status: int, folder: Path) -> None:
    """In the middle of an iteration of many steps, which is lost."""
    run = Run(folder, "callbacks.checkpoint.every_n_iterations=1", "num_steps=8192")
    saved = run.iterations()
    run.tell(number)
    time.sleep(1.2)
    run.tell(number)
    began = time.monotonic()
    assert run.wait() == status, run.output()
    assert time.monotonic() - began < 20
    assert run.iterations() == saved


@pytest.mark.slow
def test_signal_to_two_ranks(folder: Path) -> None:
    run = Run(folder, *TWO)
    ranks = run.ranks()
    assert len(ranks) == 2
    os.killpg(run.process.pid, signal.SIGTERM)  # as a cluster's scheduler does
    assert run.wait() == 143, run.output()
    assert run.iterations() == run.rows()
    assert not any(map(runs, ranks))


@pytest.mark.slow
def test_two_ranks_stop_at_once_in_an_evaluation(folder: Path) -> None:
    """Which would never end; the iteration before it is saved, though none was due."""
    forever = ["evaluation.every_steps=1", "evaluation.episodes=2000000"]
    run = Run(folder, *TWO, RARELY, *forever)
    time.sleep(2)
    began = time.monotonic()
    run.tell(signal.SIGTERM)
    assert run.wait(60) == 143, run.output()
    assert time.monotonic() - began < 30  # some 2 s of work on cores that are shared
    assert run.iterations() == 1
    assert run.checkpoint()["ppo1_lightning"]["owes_evaluation"]


@pytest.mark.slow
def test_a_stopped_rank_ends_the_others(folder: Path) -> None:
    run = Run(folder, *TWO)
    ranks, saved = run.ranks(), run.iterations()
    os.kill(ranks[1], signal.SIGSTOP)
    assert run.wait(seconds=60) == 128 + signal.SIGKILL
    assert "rank 1 has been stopped for" in run.output()
    assert not any(map(runs, ranks))
    assert run.iterations() >= saved


@pytest.mark.slow
def test_second_signal_stops_two_ranks_at_once(folder: Path) -> None:
    run = Run(folder, *TWO, "callbacks.checkpoint.every_n_iterations=1", "num_steps=32768")
    ranks, saved = run.ranks(), run.iterations()
    run.tell(signal.SIGINT)
    time.sleep(2)
    run.tell(signal.SIGINT)
    began = time.monotonic()
    assert run.wait() == 130, run.output()
    assert time.monotonic() - began < 20
    assert not any(map(runs, ranks))
    assert run.iterations() in (saved, saved + 1)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_death_of_a_rank_ends_the_others(rank: int, folder: Path) -> None:
    run = Run(folder, *TWO)
    ranks = run.ranks()
    saved = run.iterations()
    os.kill(ranks[rank], signal.SIGKILL)
    assert run.wait(seconds=30) == 128 + signal.SIGKILL
    assert not any(map(runs, ranks))
    assert f"rank {1 - rank} stopped, for another rank ended" in run.output()
    assert run.iterations() >= saved
    run.goes_on()  # on one device


@pytest.mark.slow
def test_slurm_preemption(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1 in what looks like a SLURM job: saved, and requeued by a stand-in for scontrol."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "77",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "ppo",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
    }.items():
        monkeypatch.setenv(name, value)
    run = Run(folder, RARELY)
    run.tell(signal.SIGUSR1)
    assert run.wait() == 128 + signal.SIGUSR1, run.output()
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert run.iterations() == run.rows() > 0
    assert not list(folder.rglob("hpc_ckpt*"))
    run.goes_on()


@pytest.mark.slow
def test_full_disk(folder: Path) -> None:
    """By RLIMIT_FSIZE, which lets writes fail beyond a size: a checkpoint's, not a row's."""
    run = Run(folder, "logger=csv")
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    assert run.wait(60) == 2, run.output()
    errors = [line for line in run.output().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "last.ckpt could not be written" in errors[0] or "metrics.csv" in errors[0]
    assert "Traceback" not in run.output()
    run.goes_on("logger=csv")
