"""Each file operation of a training fails once: it says so in a line, and loses nothing."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import fault_sweep
import pytest
from faulty_files import Faults
from lightning import Callback
from tiny_runs import train_tiny

from ppo1_lightning.algorithms.plain import read_checkpoint
from ppo1_lightning.errors import StorageError

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> fault_sweep.Sweep:
    return fault_sweep.Sweep(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_one_operation_fails(runs: fault_sweep.Sweep, part: float) -> None:
    at = round(part * len(runs.operations))
    assert runs.problem(at, fault_sweep.ERRORS[at % 5]) is None, runs.operations[at - 1]


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("stat last.ckpt", errno.EACCES),  # found it is not, but may be there
        ("read last.ckpt", errno.EIO),
        ("write train.log", errno.ENOSPC),
    ],
)
def test_this_operation_fails(runs: fault_sweep.Sweep, operation: str, error: int) -> None:
    assert runs.problem(runs.operations.index(operation) + 1, error) is None


def test_the_disk_stays_full(runs: fault_sweep.Sweep) -> None:
    at = runs.operations.index("write metrics.csv") + 1
    assert runs.problem(at, errno.ENOSPC, for_good=True) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_operation_fails(runs: fault_sweep.Sweep) -> None:
    """With one of the five errors each."""
    found = {
        f"{at} {name}": problem
        for at, name in enumerate(runs.operations, 1)
        if (problem := runs.problem(at, fault_sweep.ERRORS[at % 5]))
    }
    assert not found


class Deletes(Callback):
    """Deletes the run's folder in the second iteration."""

    def on_train_batch_end(self, trainer: Any, *args: Any, **named: Any) -> None:
        if trainer.global_step == 2:
            shutil.rmtree(trainer.default_root_dir)


def test_the_folder_is_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["env=cartpole", "logger=csv", "+callbacks.x={_target_: test_faults.Deletes}"]
    with pytest.raises(SystemExit) as end:
        train_tiny(tmp_path / "run", *words, "callbacks.checkpoint.every_n_iterations=9")
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1, errors
    assert "metrics.csv could not be written (No such file or directory)" in errors
    assert "Traceback" not in errors


def test_a_fault_is_no_damage(tmp_path: Path) -> None:
    """Wherever the file is read, also by PyTorch after the checksums were looked at."""
    run = train_tiny(tmp_path / "run", "env=cartpole", "logger=csv")
    last = run / "checkpoints" / "last.ckpt"
    with (faults := Faults([run])).installed():
        read_checkpoint(last)
    reads = len(faults.done)
    assert reads > 3
    for at in range(1, reads + 1):
        fault = Faults([run], at, errno.EIO)
        with fault.installed(), pytest.raises(StorageError, match="cannot be read"):
            read_checkpoint(last)
