"""Checkpoints of a run: the last whole iteration and the best one."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ppo1_lightning.distributed import all_max, world_size
from ppo1_lightning.errors import (
    ConfigurationError,
    DivergenceError,
    SimulationError,
    check_integer,
)

log = logging.getLogger("ppo1_lightning")

_NOT_FINITE = (DivergenceError, SimulationError)


class RunCheckpoint(Checkpoint):
    """Keeps ``dirpath/last.ckpt`` and ``dirpath/best.ckpt``, and no other file.

    Both are written every ``every_n_iterations`` iterations and at the end of the run, however
    it ends: budget spent, Ctrl-C, SIGTERM or, on a single device, an error between two updates. An
    update that diverged is undone, on any number of devices, and what it started from is saved.
    Ctrl-C and SIGTERM let the iteration finish on all ranks and save it; a second Ctrl-C stops at
    once. A checkpoint is always the state after a whole iteration, never one in the middle of an
    update, and replaces the previous one atomically. ``fast_dev_run`` writes nothing.

    ``best.ckpt`` is the state with the highest ``monitor`` among those that were about to be
    saved; there is none until the first score that is not NaN. The best score survives a resume
    in the same folder; in a folder without ``best.ckpt`` the search starts anew.

    Lightning's own ``ModelCheckpoint`` is not used: it stores the paths it writes to and deletes,
    warns about manual optimisation, and saves nothing when a run ends between two saves.

    Args:
        dirpath: folder of the checkpoints, created when the run starts.
        every_n_iterations: iterations (``trainer.global_step``) between two saves.
        monitor: metric logged with ``LightningModule.log`` on every iteration, higher is better.

    Attributes:
        best_score: the score of ``best.ckpt``, ``-inf`` while there is none.

    Raises:
        ConfigurationError: ``every_n_iterations`` is not a positive integer or, when the run
            starts, ``dirpath`` cannot be created.
    """

    def __init__(
        self,
        dirpath: str | Path,
        *,
        every_n_iterations: int = 10,
        monitor: str = "episode_return_mean",
    ) -> None:
        super().__init__()
        self.dirpath = Path(dirpath).absolute()
        self.every_n_iterations = check_integer(
            "every_n_iterations", every_n_iterations, at_least=1
        )
        self.monitor = monitor
        self.best_score = -math.inf
        self.best_model_path = ""  # Lightning reads it for ``ckpt_path="best"``
        self._start_step: int | None = None  # global step that the run started from
        self._saved_step = 0
        self._updating = False
        self._signal = 0  # number of the signal that asked this process to stop
        self._handlers: dict[int, Any] = {}  # the ones that ours stand in for

    @property
    def last_path(self) -> Path:
        """The newest checkpoint."""
        return self.dirpath / "last.ckpt"

    @property
    def best_path(self) -> Path:
        """The checkpoint with the best score."""
        return self.dirpath / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Return the best score: plain numbers and, on purpose, no path."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the best score of the checkpoint."""
        self.best_score = float(state_dict["best_score"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the folder before any work is done that could not be saved."""
        if stage != "fit" or _is_dry_run(trainer) or not trainer.is_global_zero:
            return
        try:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            for path in (self.last_path, self.best_path):  # left by a process killed in mid-save
                _temporary(path).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"dirpath={str(self.dirpath)!r} cannot hold checkpoints, expected a writable "
                f"folder ({error.strerror})"
            ) from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the run starts, and take over the signals."""
        has_best = trainer.is_global_zero and self.best_path.exists()
        if all_max(has_best, trainer.strategy.root_device):
            self.best_model_path = str(self.best_path)
        else:
            self.best_score = -math.inf
        self._start_step = self._saved_step = trainer.global_step
        self._updating, self._signal = False, 0
        self._catch_signals()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Mark the state as not worth saving until the update is done."""
        self._updating = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to, or when any rank was told to stop."""
        self._updating = False
        told = self._signal or (signal.SIGTERM if trainer.received_sigterm else 0)
        # it may have reached only one rank, or the ranks in different iterations
        told = all_max(told, trainer.strategy.root_device)
        if told or trainer.global_step % self.every_n_iterations == 0:
            self._save(trainer)
        if told:
            raise KeyboardInterrupt if told == signal.SIGINT else SIGTERMException

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, also where the last iteration was saved: now the epoch counts as done."""
        self._release_signals()
        if trainer.global_step != self._start_step:
            self._save(trainer)
        self._start_step = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what the periodic saves missed, if the state is whole."""
        self._release_signals()
        running, self._start_step = self._start_step is not None, None
        if isinstance(exception, DivergenceError) and exception.undone:
            unsaved = True  # on all ranks alike, and perhaps of a run that saved nothing so far
        else:  # saving takes all ranks, and where one failed the others wait elsewhere
            whole = not self._updating and world_size() == 1
            unsaved = whole and trainer.global_step != self._saved_step
        if running and unsaved:
            self._save(trainer)
        if running and self.last_path.exists() and isinstance(exception, _NOT_FINITE):
            exception.add_note(f"the last good parameters are in {self.last_path}")

    def _save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt`` and, after an improvement, ``best.ckpt``; called on all ranks."""
        if _is_dry_run(trainer):
            return
        self._saved_step = trainer.global_step  # first, so that a full disk is not tried twice
        score = self._score(trainer)
        improved = score > self.best_score
        self.best_score = max(score, self.best_score)
        temporary = _temporary(self.last_path)
        trainer.save_checkpoint(temporary, weights_only=False)
        if improved:
            self.best_model_path = str(self.best_path)
        if trainer.is_global_zero:
            # best first: if the process dies in between, last.ckpt does not know of the new best
            if improved:
                shutil.copyfile(temporary, _temporary(self.best_path))
                _replace(self.best_path)
            _replace(self.last_path)

    def _score(self, trainer: Trainer) -> float:
        """Return the monitored value, the same on all ranks, ``-inf`` where there is none."""
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        return all_max(-math.inf if math.isnan(score) else score, trainer.strategy.root_device)

    def _catch_signals(self) -> None:
        """Let signals wait for the end of an iteration."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not the user's own
            self._catch(signal.SIGINT)
        # Lightning notes a SIGTERM too, but with several ranks its handler calls a collective from
        # wherever the signal came in, and the ranks hang
        if world_size() > 1:
            self._catch(signal.SIGTERM)

    def _catch(self, number: int) -> None:
        self._handlers[number] = signal.signal(number, self._on_signal)

    def _release_signals(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._on_signal:  # Lightning may have replaced it
                signal.signal(number, handler)
        self._handlers.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            log.warning("interrupted: finishing this iteration; press Ctrl-C again to stop at once")


def _is_dry_run(trainer: Any) -> bool:  # Lightning sets it where type checkers do not see it
    return bool(trainer.fast_dev_run)


def _temporary(path: Path) -> Path:
    """Return where ``path`` is written to first: a rename is atomic only within a folder."""
    return path.with_name(f".{path.name}.tmp")


def _replace(path: Path) -> None:
    """Move the temporary file over ``path``: after a crash there is the old file or the new one."""
    with _temporary(path).open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(_temporary(path), path)
    if os.name == "posix":  # make the rename last; other systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
