"""`RunCheckpoint` under a real Trainer: what is on disk after runs that end in every way."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from standin import StandIn, StandInData, trainer

from ppo1_lightning.callbacks import RunCheckpoint
from ppo1_lightning.errors import ConfigurationError, StorageError

PROGRAM = Path(__file__).parents[1] / "run_standin.py"  # beside what it imports


@pytest.fixture(autouse=True)
def _handlers_restored() -> Iterator[None]:
    """Lightning leaves SIGINT ignored after an interrupt: it expects the process to exit."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def fit(
    folder: Path,
    module: StandIn,
    data: StandInData | int,
    *,
    every: int = 1,
    resume: Path | None = None,
    **options: Any,
) -> RunCheckpoint:
    callback = RunCheckpoint(folder, every_n_iterations=every)
    data = StandInData(data) if isinstance(data, int) else data
    trainer(callback, **options).fit(module, data, ckpt_path=resume)
    return callback


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def iterations(path: Path) -> int:
    """Return the iteration of a checkpoint, after checking that all of it is of that iteration."""
    checkpoint = load(path)
    iteration = checkpoint["counters"]["iterations"]
    assert checkpoint["global_step"] == iteration
    assert checkpoint["state_dict"]["weight"].item() == iteration
    return iteration


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_last_and_best_and_nothing_else(tmp_path: Path) -> None:
    callback = fit(tmp_path, StandIn([1.0, 3.0, 2.0, 3.0, -5.0]), 5)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert iterations(tmp_path / "last.ckpt") == 5
    assert iterations(tmp_path / "best.ckpt") == 2  # the first of two equal scores
    assert load(tmp_path / "last.ckpt")["callbacks"] == {"RunCheckpoint": {"best_score": 3.0}}
    assert callback.best_model_path == str(tmp_path / "best.ckpt")


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(iteration: int) -> None:
        path = tmp_path / "previous.ckpt"
        seen.append(iterations(path) if path.exists() else 0)

    fit(tmp_path, StandIn([0.0], look), 6, every=2)
    assert seen == [0, 0, 0, 0, 2, 2]


def test_saves_every_n_iterations_and_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(iteration: int) -> None:
        path = tmp_path / "last.ckpt"
        seen.append(iterations(path) if path.exists() else 0)

    fit(tmp_path, StandIn([0.0], look), 8, every=3)
    assert seen == [0, 0, 0, 3, 3, 3, 6, 6]
    assert iterations(tmp_path / "last.ckpt") == 8


def test_best_is_judged_when_saving(tmp_path: Path) -> None:
    fit(tmp_path, StandIn([9.0, 1.0, 8.0, 2.0, 3.0]), 5, every=2)
    assert iterations(tmp_path / "best.ckpt") == 5  # of 1, 2 and, at the end, 3


def test_budget_ends_the_run_early(tmp_path: Path) -> None:
    fit(tmp_path, StandIn([1.0, 2.0]), StandInData(7, known_length=False), every=100)
    assert iterations(tmp_path / "last.ckpt") == iterations(tmp_path / "best.ckpt") == 7


@pytest.mark.parametrize("unknown", [math.nan, None])
def test_no_best_before_the_first_score(tmp_path: Path, unknown: float | None) -> None:
    fit(tmp_path / "a", StandIn([unknown]), 3)
    assert names(tmp_path / "a") == ["last.ckpt", "previous.ckpt"]

    fit(tmp_path / "b", StandIn([unknown, unknown, -1e9, math.nan, -2e9]), 5)
    assert iterations(tmp_path / "b" / "best.ckpt") == 3


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    fit(tmp_path / "run", StandIn([1.0]), 5, fast_dev_run=True, default_root_dir=tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("known_length", [True, False])
@pytest.mark.parametrize("which", ["last.ckpt", "best.ckpt"])
def test_resume_with_a_larger_budget(tmp_path: Path, which: str, known_length: bool) -> None:
    scores = [1.0, 2.0, 6.0, 3.0, 4.0, 5.0, 7.0]
    fit(tmp_path, StandIn(scores), StandInData(4, known_length))
    module = StandIn(scores)
    data = StandInData(6, known_length)
    callback = fit(tmp_path, module, data, resume=tmp_path / which)
    assert module.counters.iterations == 6
    assert iterations(tmp_path / "last.ckpt") == 6
    assert iterations(tmp_path / "best.ckpt") == 3  # 6.0 survived
    assert callback.best_score == 6.0
    fit(tmp_path, StandIn(scores), StandInData(7, known_length), resume=tmp_path / "last.ckpt")
    assert iterations(tmp_path / "best.ckpt") == 7
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, StandIn([1.0]), 3)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    module = StandIn([2.0])
    fit(tmp_path, module, 3, resume=tmp_path / "last.ckpt")
    assert module.counters.iterations == 3
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_resume_into_another_folder_leaves_the_old_one_alone(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    fit(old, StandIn([5.0, 1.0]), 2)
    before = {name: (old / name).read_bytes() for name in names(old)}
    fit(new, StandIn([5.0, 1.0, 2.0, 1.0]), 4, resume=old / "last.ckpt")
    assert {name: (old / name).read_bytes() for name in names(old)} == before
    assert iterations(new / "last.ckpt") == 4
    assert iterations(new / "best.ckpt") == 3  # the best of those in this folder
    assert str(old) not in str(load(new / "last.ckpt"))


def test_first_interrupt_finishes_the_iteration(tmp_path: Path) -> None:
    module = StandIn([1.0], lambda i: os.kill(os.getpid(), signal.SIGINT) if i == 4 else None)
    with pytest.raises(SystemExit) as exit_:
        fit(tmp_path, module, 100, every=50)
    assert exit_.value.code == 130
    assert iterations(tmp_path / "last.ckpt") == 5

    module = StandIn([1.0])
    fit(tmp_path, module, 8, resume=tmp_path / "last.ckpt")
    assert module.counters.iterations == iterations(tmp_path / "last.ckpt") == 8


def test_second_interrupt_keeps_the_last_whole_iteration(tmp_path: Path) -> None:
    def interrupt_twice(iteration: int) -> None:
        if iteration == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        fit(tmp_path, StandIn([1.0], interrupt_twice), 100, every=3)
    assert iterations(tmp_path / "last.ckpt") == 3


LATE = {
    "before the end": "on_train_batch_end",  # the module's come after those of the callbacks
    "in the last save": "on_save_checkpoint",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hook", LATE.values(), ids=LATE)
def test_a_signal_after_the_last_iteration_stops_what_would_follow(
    hook: str, number: int, tmp_path: Path
) -> None:
    """Where a sweep would go on with its next job."""
    module = StandIn([1.0])
    inner: Any = getattr(module, hook)

    def tell(*given: Any) -> None:
        if module.counters.iterations == 5:
            os.kill(os.getpid(), number)
        inner(*given)

    setattr(module, hook, tell)
    with pytest.raises(SystemExit) as exit_:
        fit(tmp_path, module, 5, every=3)
    assert exit_.value.code == 128 + number
    assert iterations(tmp_path / "last.ckpt") == 5
    fit(tmp_path, StandIn([1.0]), 7, resume=tmp_path / "last.ckpt")
    assert iterations(tmp_path / "last.ckpt") == 7


def test_interrupt_is_released_after_the_run(tmp_path: Path) -> None:
    fit(tmp_path, StandIn(), 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_users_own_interrupt_handler_stays(tmp_path: Path) -> None:
    calls: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    module = StandIn([1.0], lambda i: os.kill(os.getpid(), signal.SIGINT))
    fit(tmp_path, module, 2)
    assert calls == [signal.SIGINT] * 2


def test_sigterm_saves(tmp_path: Path) -> None:
    module = StandIn([1.0], lambda i: os.kill(os.getpid(), signal.SIGTERM) if i == 4 else None)
    with pytest.raises(SystemExit) as exit_:
        fit(tmp_path, module, 100, every=50)
    assert exit_.value.code == 143
    assert iterations(tmp_path / "last.ckpt") == 5


def test_error_between_updates_saves(tmp_path: Path) -> None:
    def collect(index: int) -> None:
        if index == 4:
            raise RuntimeError("the simulator broke")

    with pytest.raises(RuntimeError, match="the simulator broke"):
        fit(tmp_path, StandIn([1.0, 2.0, 1.0]), StandInData(9, collect=collect), every=3)
    assert iterations(tmp_path / "last.ckpt") == 4

    module = StandIn([1.0])
    fit(tmp_path, module, 6, resume=tmp_path / "last.ckpt")
    assert module.counters.iterations == iterations(tmp_path / "last.ckpt") == 6


def test_error_within_an_update_keeps_the_last_whole_iteration(tmp_path: Path) -> None:
    def fail(iteration: int) -> None:
        if iteration == 4:
            raise RuntimeError("the update broke")

    with pytest.raises(RuntimeError, match="the update broke"):
        fit(tmp_path, StandIn([1.0], fail), 9, every=3)
    assert iterations(tmp_path / "last.ckpt") == 3


def test_error_before_training_overwrites_nothing(tmp_path: Path) -> None:
    fit(tmp_path, StandIn([1.0]), 3)
    before = (tmp_path / "last.ckpt").read_bytes()
    broken = tmp_path.parent / "broken.ckpt"
    broken.write_bytes(before[: len(before) // 2])
    with pytest.raises(Exception, match=r"."):
        fit(tmp_path, StandIn([1.0]), 5, resume=broken)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_failed_write_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def fill_the_disk(iteration: int) -> None:
        if iteration == 2:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StorageError, match="No space left"):
        fit(tmp_path, StandIn([1.0, 2.0, 3.0], fill_the_disk), 9)
    assert iterations(tmp_path / "last.ckpt") == iterations(tmp_path / "best.ckpt") == 2


@pytest.mark.heavy
def test_kill_and_resume(tmp_path: Path) -> None:
    """A killed process leaves loadable files, and the run goes on from them."""
    folder = tmp_path / "checkpoints"
    command = [sys.executable, PROGRAM, tmp_path, "1", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.wait()
    done = iterations(folder / "last.ckpt")
    assert done >= 1
    assert iterations(folder / "best.ckpt") == 1

    for name in (".tmp_last.ckpt", ".tmp_best.ckpt"):  # what a kill in mid-save leaves behind
        (folder / name).touch()
    module = StandIn([0.0, 1.0])
    fit(folder, module, done + 3, resume=folder / "last.ckpt")
    assert module.counters.iterations == iterations(folder / "last.ckpt") == done + 3
    assert iterations(folder / "best.ckpt") == 1
    assert names(folder) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "x"])
def test_bad_interval(tmp_path: Path, every: Any) -> None:
    with pytest.raises(ConfigurationError, match="every_n_iterations"):
        RunCheckpoint(tmp_path, every_n_iterations=every)


def test_bad_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot hold checkpoints") as error:
        fit(tmp_path / "file", StandIn(), 1)
    assert "\n" not in str(error.value)
