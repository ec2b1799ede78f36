"""The clock of every measured process. Standard library only: peers run it in their environments.

A measured process ends by printing its result as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from typing import Any

STARTED_VARIABLE = "BENCHMARK_STARTED"
"""Environment variable with the wall clock at which the process was launched."""

WARMUP = 2
"""Iterations left out of the steady state, for every system: allocation, caches, compilation."""

_STARTED = float(os.environ.get(STARTED_VARIABLE) or time.time())


class Measurement:
    """Environment steps over wall time, from the end of the warm-up on.

    Args:
        seconds: to measure at least.
        warmup: iterations before.
        steps: of the environments after which it is enough instead, whatever the time.
    """

    def __init__(self, seconds: float, warmup: int = WARMUP, steps: int | None = None) -> None:
        self.seconds, self.warmup, self.steps = seconds, warmup, steps
        self.startup_seconds: float | None = None
        self._ticks: list[tuple[float, int]] = []  # (clock, environment steps) after an iteration

    def begin(self) -> None:
        """Note that the first environment step is about to be made."""
        if self.startup_seconds is None:
            self.startup_seconds = time.time() - _STARTED

    def tick(self, env_steps: int) -> bool:
        """Note the end of an iteration; return whether enough has been measured."""
        self._ticks.append((time.perf_counter(), env_steps))
        if self.steps is not None:
            return env_steps >= self.steps
        return self.measured > 0 and self.elapsed >= self.seconds

    @property
    def measured(self) -> int:
        """Iterations in the steady state so far."""
        return len(self._ticks) - self.warmup

    @property
    def elapsed(self) -> float:
        """Seconds of steady state so far."""
        return self._ticks[-1][0] - self._ticks[self.warmup - 1][0] if self.measured > 0 else 0.0

    def result(self, **more: Any) -> dict[str, Any]:
        """Return the rates and what this process used; RSS is of this process alone."""
        steps = self._ticks[-1][1] - self._ticks[self.warmup - 1][1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "steps_per_second": steps / self.elapsed,
            "iterations": self.measured,
            "measured_seconds": self.elapsed,
            "startup_seconds": self.startup_seconds,
            "peak_rss_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
            **more,
        }


def parse_case(
    cases: list[str], description: str | None, *, by_steps: bool = False
) -> argparse.ArgumentParser:
    """Return the parser that all drivers share; ``by_steps``: it can end after ``--steps``, too."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("case", choices=cases)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steady state, at least")
    if by_steps:
        parser.add_argument("--steps", type=int, help="of environments, in the place of seconds")
    return parser


def emit(result: dict[str, Any]) -> None:
    """Print the result as the process's last line."""
    print(json.dumps(result), flush=True)
