"""Short trainings of which one file operation fails, in turn, each in a fork of a warm process.

python tests/fault_sweep.py              # all of them, with one of five errors each
python tests/fault_sweep.py 1 0 3        # each, from the first, with the third error after that one
python tests/fault_sweep.py one 17 28    # number 17 fails with ENOSPC (28)
"""

from __future__ import annotations

import csv
import errno
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import torch
from faulty_files import Faults
from omegaconf import DictConfig

from ppo1_lightning.algorithms.plain import read_checkpoint
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands.train import train
from ppo1_lightning.runs.log_file import LogFile

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EACCES, errno.EINTR)

WORDS = ["env=cartpole", "debug=default", "trainer.accelerator=cpu", "compile=false"]
WORDS += ["num_steps=16", "algo.minibatch_size=32", "algo.update_epochs=1", "resume=auto"]
WORDS += ["callbacks.checkpoint.every_n_iterations=1", "callbacks.health=null"]


class Sweep:
    """Runs in a folder of their own, below which all that they write is.

    Attributes:
        operations: what a run does that goes on, without a fault.
    """

    def __init__(self, folder: Path) -> None:
        self._start, self._run = folder / "start", folder / "run"
        self._temporary, self._output = folder / "tmp", folder / "output.txt"
        self._temporary.mkdir()
        self._start.mkdir()
        shutil.copytree(self._start, self._run)
        self._config = _composed(self._run)
        self._train(2)  # in this process: what is imported on the way is there for all forks
        shutil.rmtree(self._start)
        shutil.copytree(self._run, self._start)
        self.operations = self._operations()

    def problem(self, at: int, error: int, *, for_good: bool = False) -> str | None:
        """Return what is wrong after operation number ``at`` has failed, None where nothing is."""
        shutil.rmtree(self._run, ignore_errors=True)
        shutil.copytree(self._start, self._run)
        folders = [self._run, self._temporary]
        status = self._forked(4, Faults(folders, at, error, for_good=for_good))
        said = self._output.read_text()
        if wrong := _misbehaved(status, said) or self._lost(2 if status else 4):
            return f"{wrong}\n{said[-3000:]}"
        status = self._forked(5, None)
        if status or self._lost(5):
            return f"does not go on: {status}, {self._lost(5)}\n{self._output.read_text()[-3000:]}"
        steps = [float(row["env_steps"]) for row in _rows(self._run)]
        if steps != [32.0 * iteration for iteration in range(1, 6)]:
            return f"rows at the steps {steps}"
        return None

    def _lost(self, least: int) -> str | None:
        """Return what is wrong with the checkpoints, of which the last has ``least`` iterations."""
        folder = self._run / "checkpoints"
        for name in ("last", "previous", "best"):
            try:
                content = read_checkpoint(folder / f"{name}.ckpt")
            except Exception as error:
                return f"{name}.ckpt: {error}"
            if name == "last" and content["global_step"] < least:
                return f"last.ckpt has {content['global_step']} iterations, of {least}"
        damaged = [path.name for path in folder.iterdir() if path.suffix == ".damaged"]
        return f"also there: {damaged}" if damaged else None

    def _operations(self) -> list[str]:
        faults = Faults([self._run, self._temporary])
        note = self._output.with_suffix(".operations")
        process = os.fork()
        if not process:
            with faults.installed():
                self._train(4)
            note.write_text("\n".join(faults.done))
            os._exit(0)
        os.waitpid(process, 0)
        return note.read_text().splitlines()

    def _forked(self, iterations: int, faults: Faults | None) -> int:
        """Return the exit status of a training in a process of its own."""
        process = os.fork()
        if not process:
            status: Any = 1
            try:
                output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)  # not pytest's
                if faults is None:
                    self._train(iterations)
                else:
                    with faults.installed():
                        self._train(iterations)
                status = 0
            except SystemExit as end:
                status = end.code
            finally:
                logging.shutdown()
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _train(self, iterations: int) -> None:
        tempfile.tempdir = str(self._temporary)
        log = logging.getLogger("ppo1_lightning")
        log.handlers = [LogFile(self._run / "train.log", delay=True)]
        log.setLevel(logging.INFO)
        config = self._config.copy()
        config.total_iterations = iterations
        cli.told(train, config)


def _composed(folder: Path) -> DictConfig:
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        return hydra.compose("train", [*WORDS, f"trainer.default_root_dir={folder}"])


def _misbehaved(status: int, said: str) -> str | None:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said or "Logging error" in said or "Exception ignored" in said:
        return "a traceback"
    if (status, len(errors)) not in ((0, 0), (2, 1)):
        return f"status {status} with {len(errors)} lines of errors"
    return None


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sweep(
    step: int = 1, first: int = 0, turn: int = 0
) -> Iterator[tuple[int, int, str, str | None]]:
    """Yield number, error, name and problem of every ``step``-th operation.

    Five turns, 0 to 4, give each of them each error.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = Sweep(Path(folder))
        for at in range(1 + first, len(runs.operations) + 1, step):
            error = ERRORS[(at + turn) % len(ERRORS)]
            yield at, error, runs.operations[at - 1], runs.problem(at, error)


def main() -> None:
    """Sweep, and print what went wrong."""
    torch.set_num_threads(1)
    one, numbers = "one" in sys.argv, [int(word) for word in sys.argv[1:] if word != "one"]
    if one:
        with tempfile.TemporaryDirectory() as folder:
            print(Sweep(Path(folder)).problem(*numbers))
        return
    bad = 0
    for at, error, name, problem in sweep(*numbers):
        bad += problem is not None
        said = "ok" if problem is None else problem
        print(f"{at} {name} {errno.errorcode[error]}: {said}", flush=True)
    print(f"{bad} problems")


if __name__ == "__main__":
    main()
