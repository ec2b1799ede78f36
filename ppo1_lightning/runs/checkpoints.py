"""Checkpoints of a run: the last whole iteration and the best one."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ppo1_lightning import system
from ppo1_lightning.distributed import all_max, world_size
from ppo1_lightning.errors import (
    ConfigurationError,
    DivergenceError,
    SimulationError,
    StorageError,
    check_flag,
    check_integer,
    check_path,
)
from ppo1_lightning.runs import files, lock
from ppo1_lightning.runs.signals import StopSignals, requeue_slurm_job
from ppo1_lightning.system import exit_status

log = logging.getLogger("ppo1_lightning")

_NOT_FINITE = (DivergenceError, SimulationError)


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, the one before it as ``previous.ckpt``, and ``best.ckpt`` in a folder.

    They are written every ``every_n_iterations`` iterations and at the end of the run, however
    it ends: budget spent, Ctrl-C, SIGTERM, a number that is not finite or, on a single device, any
    other error between two updates. An update that diverged is undone, and what it started from is
    saved.
    Signals let the iteration finish on all ranks and save it, see `StopSignals`; then rank zero
    exits with the status of the signal, 130 or 143. A checkpoint is always the state after a whole
    iteration, never one in the middle of an update, and replaces the previous one atomically; what
    was logged before it is written to disk first. ``fast_dev_run`` writes nothing.

    ``best.ckpt`` is the state with the highest ``monitor`` among those that were about to be
    saved; there is none until the first score that is not NaN. The best score survives a resume
    in the same folder; in a folder without ``best.ckpt`` the search starts anew.

    Lightning's own ``ModelCheckpoint`` is not used: it stores the paths it writes to and deletes,
    warns about manual optimisation, and saves nothing when a run ends between two saves.

    Args:
        dirpath: folder of the checkpoints, created when the run starts.
        every_n_iterations: iterations (``trainer.global_step``) between two saves.
        monitor: metric logged with ``LightningModule.log`` on every iteration, higher is better.
        exact_resume: after each save, ``restart()`` the module and its data as a resumed run would
            find them, so that it goes on as this one does. A run that is told to stop between two
            saves then saves nothing: it could not be continued from there as if it had not.

    Attributes:
        best_score: the score of ``best.ckpt``, ``-inf`` while there is none.

    Raises:
        ConfigurationError: ``every_n_iterations`` is not a positive integer or, when the run
            starts, ``dirpath`` cannot be created.
        StorageError: while training, a checkpoint cannot be written; the last one is intact.
    """

    def __init__(
        self,
        dirpath: str | Path,
        *,
        every_n_iterations: int = 10,
        monitor: str = "episode_return_mean",
        exact_resume: bool = False,
    ) -> None:
        super().__init__()
        self.dirpath = check_path("dirpath", dirpath).absolute()
        self.every_n_iterations = check_integer(
            "every_n_iterations", every_n_iterations, at_least=1
        )
        self.monitor = monitor
        self.exact_resume = check_flag("exact_resume", exact_resume)
        self.best_score = -math.inf
        self.best_model_path = ""  # Lightning reads it for ``ckpt_path="best"``
        self._start_step: int | None = None  # global step that the run started from
        self._saved_step = 0
        self._updating = False
        self._signals = StopSignals()

    @property
    def last_path(self) -> Path:
        """The newest checkpoint."""
        return self.dirpath / "last.ckpt"

    @property
    def previous_path(self) -> Path:
        """The one before it, should that get damaged."""
        return self.dirpath / "previous.ckpt"

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
        if stage == "fit" and self.exact_resume:
            for part in (pl_module, getattr(trainer, "datamodule", None)):
                if not callable(getattr(part, "restart", None)):
                    raise ConfigurationError(
                        f"exact_resume=True needs a method restart(), which {type(part).__name__} "
                        "has not; PPO and RolloutDataModule have it"
                    )
            if getattr(pl_module, "compile_update", None) == "auto":
                log.info("exact_resume: compile=auto is trace, for what is faster may change")
                cast(Any, pl_module).compile_update = "trace"
        if stage != "fit" or _is_dry_run(trainer) or not trainer.is_global_zero:
            return
        try:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            lock.hold(self.dirpath)
            self._remove_temporary_files()  # left by a process killed in mid-save
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
        self._updating = False
        self._signals.catch(at_once=functools.partial(_rests, pl_module))

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
        told = self._told(trainer)
        is_due = trainer.global_step % self.every_n_iterations == 0
        if is_due or (told and not self.exact_resume):
            self._save(trainer)
        if told:
            self._stop(trainer, told)
        if is_due and self.exact_resume:
            for part in (pl_module, getattr(trainer, "datamodule", None)):
                cast(Any, part).restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before an evaluation, in which a signal ends each rank at once, and so alone."""
        is_new = self._start_step is not None and self._saved_step != trainer.global_step
        if world_size() > 1 and is_new and not self.exact_resume:
            self._save(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where a signal came after the iteration and before the evaluation."""
        if self._start_step is not None and self._signals.told:
            self._stop(trainer, self._signals.told)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again what was saved just before: now the evaluation is done."""
        if self._start_step is not None and self._saved_step == trainer.global_step:
            self._save(trainer)

    def _told(self, trainer: Trainer) -> int:
        """Return the signal that has come, to only one rank maybe; called on all ranks."""
        told = self._signals.told or (signal.SIGTERM if trainer.received_sigterm else 0)
        return int(all_max(told, trainer.strategy.root_device))

    def _stop(self, trainer: Trainer, told: int) -> None:
        """End the run on this rank; Lightning's launcher would take a status for a failure."""
        raise SystemExit(exit_status(told) if trainer.is_global_zero else 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, also where the last iteration was saved: now the epoch counts as done.

        A signal that came since is about what follows, as the next job of a sweep.
        """
        if trainer.global_step != self._start_step:
            self._save(trainer)
        if told := self._told(trainer):
            self._stop(trainer, told)  # with the signals still ours, see `on_exception`
        self._start_step = None
        self._signals.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let other processes write the folder."""
        lock.release(self.dirpath)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what the periodic saves missed, if the state is whole.

        The signals stay ours until Lightning gives all back: where another rank has ended too, a
        launcher sends SIGTERM, and Lightning's own handler would call a collective.
        """
        running, self._start_step = self._start_step is not None, None
        undone = isinstance(exception, DivergenceError) and exception.undone
        # Saving takes all ranks: where only one failed, the others wait elsewhere.
        together = world_size() == 1 or getattr(exception, "on_all_ranks", False)
        whole = together and (undone or not self._updating)
        unsaved = undone or trainer.global_step != self._saved_step
        if running and whole and unsaved and not self.exact_resume:
            self._save(trainer)
        stops = running and isinstance(exception, SystemExit)
        if stops and self._signals.told == system.REQUEUE and trainer.is_global_zero:
            requeue_slurm_job()
        if running and self.last_path.exists() and isinstance(exception, _NOT_FINITE):
            exception.add_note(f"the last good parameters are in {self.last_path}")
        lock.release(self.dirpath)  # Lightning calls no `teardown` then

    def _save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt`` and, after an improvement, ``best.ckpt``; called on all ranks."""
        if _is_dry_run(trainer):
            return
        self._saved_step = trainer.global_step  # first, so that a full disk is not tried twice
        score = self._score(trainer)
        improved = score > self.best_score
        self.best_score = max(score, self.best_score)
        try:
            self._write(trainer, improved)
        except OSError as error:
            self._remove_temporary_files()
            raise StorageError(
                f"{self.last_path} could not be written in iteration {trainer.global_step} "
                f"({error.strerror or error}); the checkpoint before it is intact"
            ) from error
        if improved:
            self.best_model_path = str(self.best_path)

    def _write(self, trainer: Trainer, improved: bool) -> None:
        for logger in trainer.loggers:
            logger.save()  # so that no row before the checkpoint can be lost
        new = files.temporary(self.last_path)
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:
            # best first: if the process dies in between, last.ckpt does not know of the new best
            if improved:
                best = files.temporary(self.best_path)
                shutil.copyfile(new, best)
                files.put_in_place(best, self.best_path)
            if self.last_path.exists():
                files.give_second_name(self.last_path, self.previous_path)
            files.put_in_place(new, self.last_path)

    def _remove_temporary_files(self) -> None:
        for path in (self.last_path, self.previous_path, self.best_path):
            with suppress(OSError):  # a disk that cannot write says so itself
                files.temporary(path).unlink(missing_ok=True)

    def _score(self, trainer: Trainer) -> float:
        """Return the monitored value, the same on all ranks, ``-inf`` where there is none."""
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        return all_max(-math.inf if math.isnan(score) else score, trainer.strategy.root_device)


def _rests(module: Any) -> bool:
    """Tell whether a module does something else than train: it compiles or evaluates."""
    clock = getattr(module, "clock", None)
    return clock is not None and clock.is_paused


def _is_dry_run(trainer: Any) -> bool:  # Lightning sets it where type checkers do not see it
    return bool(trainer.fast_dev_run)
