"""How far the run is: a bar on a terminal, now and then a log line anywhere else."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from ppo1_lightning.errors import check_number

log = logging.getLogger("ppo1_lightning")


class Progress(ProgressBar):
    """Shows budget spent, environment steps, steps per second, mean return and time left.

    On a terminal one live line, redrawn at most four times a second; elsewhere one line through
    the logger ``ppo1_lightning`` about every ``refresh_seconds`` and at the end. Only rank zero
    shows anything. An iteration that shows nothing costs one look at the clock.

    It reads ``counters`` and ``metrics`` of the module (`PPO` has both) and ``budget`` of the data
    module; without a budget, share and time left are unknown.

    Args:
        refresh_seconds: seconds between two log lines.

    Raises:
        ConfigurationError: ``refresh_seconds`` is negative or not a number.
    """

    def __init__(self, refresh_seconds: float = 10.0) -> None:
        super().__init__()
        self.refresh_seconds = check_number("refresh_seconds", refresh_seconds, at_least=0)
        self._enabled = True
        self._display: _Display | None = None  # while training, on rank zero
        self._due = self._started = 0.0  # seconds of the monotonic clock
        self._share_at_start = math.nan

    def enable(self) -> None:
        """Show the progress of following runs."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: Lightning calls it on every rank but zero."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without tearing the bar."""
        if isinstance(self._display, _Bar):
            self._display.console.print(*args, **kwargs)
        else:
            print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the display."""
        if not self._enabled:
            return
        self._display = _choose_display(self.refresh_seconds)
        self._started = time.monotonic()
        self._due = self._started  # the first iteration shows that the run is alive
        self._share_at_start = _share_spent(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the status when it is due."""
        if self._display is not None and time.monotonic() >= self._due:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the final status."""
        self._finish(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Show how far the run came, and give the terminal back."""
        self._finish(trainer, pl_module)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._display is not None:
            self._show(trainer, pl_module)
            self._display.close()
            self._display = None

    def _show(self, trainer: Trainer, module: Any) -> None:
        assert self._display is not None
        now = time.monotonic()
        share = _share_spent(trainer, module)
        advanced = share - self._share_at_start
        left = (now - self._started) * (1 - share) / advanced if advanced > 0 else math.nan
        self._display.show(
            Status(
                share=share,
                env_steps=module.counters.env_steps,
                steps_per_second=module.metrics.get("steps_per_second", math.nan),
                episode_return=module.metrics.get("episode_return_mean", math.nan),
                seconds_left=left,
            )
        )
        self._due = now + self._display.period


@dataclass(frozen=True)
class Status:
    """One moment of a run; NaN is what is not known yet.

    Attributes:
        share: of the budget that is spent, in [0, 1].
        env_steps: rows collected so far.
        steps_per_second: rows per second of wall time.
        episode_return: mean return of the last episodes.
        seconds_left: estimate of the time until the budget is spent.
    """

    share: float
    env_steps: int
    steps_per_second: float
    episode_return: float
    seconds_left: float

    def __str__(self) -> str:
        left = self.seconds_left
        eta = "-" if math.isnan(left) else str(timedelta(seconds=round(min(left, 1e9))))
        return " | ".join(
            [
                _known(100 * self.share, ".1f") + " %",
                f"{self.env_steps:,} steps",
                _known(self.steps_per_second, ",.0f") + " steps/s",
                "return " + _known(self.episode_return, ",.2f"),
                "ETA " + eta,
            ]
        )


class _Display(Protocol):
    period: float
    """Seconds between two updates."""

    def show(self, status: Status) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A live line on a terminal. Drawn from the training loop: a thread would compete with it."""

    period = 0.25

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = BarColumn(), TextColumn("{task.description}", markup=False)
        self._progress = RichProgress(*columns, console=console, auto_refresh=False)
        self._task = self._progress.add_task("", total=1.0)
        self._progress.start()

    def show(self, status: Status) -> None:
        share = 0.0 if math.isnan(status.share) else status.share
        self._progress.update(self._task, completed=share, description=str(status), refresh=True)

    def close(self) -> None:
        self._progress.stop()


class _LogLines:
    """A line of the log now and then, for files and pipes."""

    def __init__(self, period: float) -> None:
        self.period = period

    def show(self, status: Status) -> None:
        log.info("%s", status)

    def close(self) -> None:
        pass


def _choose_display(refresh_seconds: float) -> _Display:
    console = rich.get_console()
    return _Bar(console) if console.is_interactive else _LogLines(refresh_seconds)


def _share_spent(trainer: Trainer, module: Any) -> float:
    """Return the share of the budget in [0, 1] that is spent, NaN without a budget."""
    budget = getattr(getattr(trainer, "datamodule", None), "budget", None)
    return math.nan if budget is None else budget.fraction_spent(module.counters)


def _known(value: float, spec: str) -> str:
    return "-" if math.isnan(value) else format(value, spec)
