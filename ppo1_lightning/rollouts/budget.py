"""How long a run is: by steps, episodes, iterations or seconds, as in the original's ``learn``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, fields

from ppo1_lightning.errors import ConfigurationError, check_integer, check_number

ENDLESS = sys.maxsize // 2
"""Iterations that no run comes to, and still a length to Python."""


@dataclass
class Counters:
    """What a run has used up so far, the same on every rank.

    Attributes:
        iterations: rollouts learned from.
        env_steps: rows collected, reset rows included: the clock of budgets and schedules.
        transitions: valid rows among them.
        episodes: whole episodes (games) that ended.
        seconds: wall time from the first rollout on, over all resumed parts.
    """

    iterations: int = 0
    env_steps: int = 0
    transitions: int = 0
    episodes: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, float]:
        """Return plain numbers for a checkpoint."""
        return asdict(self)


class Clock:
    """Counts a run's seconds, those left out that are not training.

    Attributes:
        is_paused: what happens now is not training.
    """

    def __init__(self) -> None:
        self.is_paused = False
        self._since, self._last_row = time.perf_counter(), Counters()

    def start(self, counters: Counters) -> None:
        """Start, or go on, with a run that has used up so much."""
        self._since, self._last_row = time.perf_counter(), copy(counters)

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def pause(self) -> None:
        """Stop the clock: what comes now is not training."""
        self._since -= time.perf_counter()
        self.is_paused = True

    def resume(self) -> None:
        """Start it again."""
        self._since += time.perf_counter()
        self.is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a while."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def steps_per_second(self, counters: Counters) -> float:
        """Return the speed since this was last asked for."""
        last, self._last_row = self._last_row, copy(counters)
        return (counters.env_steps - last.env_steps) / max(counters.seconds - last.seconds, 1e-9)


@dataclass(frozen=True)
class Budget:
    """Exactly one of four limits.

    Raises:
        ConfigurationError: none or several are set, or one is not positive.
    """

    total_steps: int | None = None
    total_episodes: int | None = None
    total_iterations: int | None = None
    total_seconds: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            names = ", ".join(f.name for f in fields(self))
            found = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise ConfigurationError(
                f"the run needs exactly one budget of {names}, found {found}"
                + ("; set total_steps=null to use another" if given.get("total_steps") else "")
            )
        ((name, value),) = given.items()
        if name == "total_seconds":
            check_number(name, value, above=0)
        else:
            object.__setattr__(self, name, check_integer(name, value, at_least=1))

    def fraction_spent(self, counters: Counters) -> float:
        """Return how much of the budget is used up, in [0, 1]."""
        pairs = (
            (counters.env_steps, self.total_steps),
            (counters.episodes, self.total_episodes),
            (counters.iterations, self.total_iterations),
            (counters.seconds, self.total_seconds),
        )
        return next(min(used / total, 1.0) for used, total in pairs if total is not None)

    def fraction_spent_at_last_row(self, counters: Counters, rows_per_iteration: int) -> float:
        """Return what will be used up when the coming rollout's last row begins (a2c's clock).

        Of episodes and seconds nobody knows: then it is what is used up now.
        """
        total = self.total_steps or (self.total_iterations or 0) * rows_per_iteration
        ahead = (rows_per_iteration - 1) / total if total else 0.0
        return min(self.fraction_spent(counters) + ahead, 1.0)

    def iterations(self, rows_per_iteration: int) -> int | None:
        """Return the number of iterations of a whole run, None where only the run can tell."""
        if self.total_steps is not None:
            return -(-self.total_steps // rows_per_iteration)
        return self.total_iterations

    def iterations_left(self, counters: Counters, rows_per_iteration: int) -> int:
        """Return the number of iterations still to run, at most `ENDLESS`, also where unknown."""
        if self.fraction_spent(counters) >= 1:
            return 0
        if self.total_steps is not None:
            return min(-(-(self.total_steps - counters.env_steps) // rows_per_iteration), ENDLESS)
        if self.total_iterations is not None:
            return min(self.total_iterations - counters.iterations, ENDLESS)
        return ENDLESS

    def __str__(self) -> str:
        ((name, value),) = ((k, v) for k, v in asdict(self).items() if v is not None)
        return f"{value:,} {name.removeprefix('total_')}"
