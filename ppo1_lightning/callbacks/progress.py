"""How far the run is: a bar on a terminal, now and then a log line anywhere else."""

from __future__ import annotations

import logging
import math
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from ppo1_lightning.errors import check_number

log = logging.getLogger("ppo1_lightning")


class Progress(TQDMProgressBar):
    """Lightning's bar, over the budget, with steps, steps per second, mean return and time left.

    On a terminal it is drawn at most four times a second; elsewhere it is a line through the logger
    ``ppo1_lightning`` about every ``refresh_seconds`` and at the end. Only rank zero shows
    anything. It reads ``counters`` and ``metrics`` of the module (`PPO` has both) and ``budget`` of
    the data module, without which share and time left are unknown.

    Args:
        refresh_seconds: seconds between two log lines.

    Raises:
        ConfigurationError: ``refresh_seconds`` is negative or not a number.
    """

    BAR_FORMAT = "{bar:20} {desc}"

    def __init__(self, refresh_seconds: float = 10.0) -> None:
        super().__init__()
        self.refresh_seconds = check_number("refresh_seconds", refresh_seconds, at_least=0)
        self._due = self._started = 0.0  # seconds of the monotonic clock
        self._share_at_start = math.nan

    @property
    def is_disabled(self) -> bool:
        """Whether there is no bar: anything but a terminal would keep each state of it."""
        return not (self.is_enabled and sys.stdout.isatty())

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without tearing the bar."""
        (print if self.is_disabled else super().print)(*args, **kwargs)

    def on_train_start(self, *_: Any) -> None:
        """Make the bar; the first iteration shows that the run is alive."""
        super().on_train_start()
        self._started = self._due = time.monotonic()
        self._share_at_start = self._share_spent()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Show the status when it is due."""
        if time.monotonic() >= self._due:
            self._show()

    def on_train_end(self, *_: Any) -> None:
        """Show the final status, and give the terminal back."""
        if self._train_progress_bar is not None:
            self._show()
            super().on_train_end()
            self._train_progress_bar = None

    def on_exception(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Show how far the run came, and give the terminal back."""
        self.on_train_end()

    def _show(self) -> None:
        module: Any = self.trainer.lightning_module
        now, share, bar = time.monotonic(), self._share_spent(), self.train_progress_bar
        advanced = share - self._share_at_start
        left = (now - self._started) * (1 - share) / advanced if advanced > 0 else math.nan
        text = status(share, module.counters.env_steps, module.metrics, left)
        self._due = now + (self.refresh_seconds if bar.disable else 0.25)
        if not bar.disable:
            bar.total, bar.n = 1.0, 0.0 if math.isnan(share) else share
            bar.set_description_str(text)
        elif self.is_enabled:
            log.info("%s", text)

    def _share_spent(self) -> float:
        budget = getattr(getattr(self.trainer, "datamodule", None), "budget", None)
        module: Any = self.trainer.lightning_module
        return math.nan if budget is None else budget.fraction_spent(module.counters)


def status(share: float, env_steps: int, metrics: dict[str, float], seconds_left: float) -> str:
    """Return a line on a share of the budget in [0, 1] and the rest; "-" where one is NaN."""
    speed = metrics.get("steps_per_second", math.nan)
    score = metrics.get("episode_return_mean", math.nan)
    left = str(timedelta(seconds=round(min(seconds_left, 1e9)))) if seconds_left >= 0 else "-"
    length = metrics.get("episode_length_mean", math.nan)
    text = f"{100 * share:.1f} % | {env_steps:,} steps | {speed:,.0f} steps/s | return {score:,.2f}"
    return f"{text} | length {length:,.0f} | ETA {left}".replace("nan", "-")
