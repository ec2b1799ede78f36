"""What ends a run in one line, and the helpers that name the nearest valid choice."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ppo1_lightning import system

LARGEST = 1e30
"""Of a number that is computed with: its product with another one is still a float32."""

LARGEST_INTEGER = 2**63 - 1
"""Of a whole number, as PyTorch and NumPy hold one."""

LONGEST_QUOTE = 300
"""Characters of an error that are quoted of all its lines."""

_NUMBERS = (int, float, np.integer, np.floating)


class RunError(Exception):
    """A run cannot start or go on, and one line says why: printed without a traceback.

    Attributes:
        on_all_ranks: raised on all ranks alike, which then can still save the run together.
    """

    on_all_ranks = False


class ConfigurationError(RunError, ValueError):
    """Something the user chose cannot work.

    The message is one line: what was wrong, what was expected and, where there is one, the
    nearest valid choice.
    """


class DivergenceError(RunError, RuntimeError):
    """The policy is of no use any more: a loss, a gradient or a parameter is not a finite number.

    The message is one line that names the iteration, the quantity and its value.

    Args:
        undone: raised on all ranks alike, after policy, optimizer and counters were put back as
            they were before the iteration; False: while it was acting, with nothing to undo.
    """

    def __init__(self, message: str, *, undone: bool = True) -> None:
        super().__init__(message)
        self.undone = self.on_all_ranks = undone


class SimulationError(RunError, RuntimeError):
    """The simulator returned something that must not be learned from, such as a NaN reward.

    The message is one line that names the iteration, the environment and the value.

    Args:
        problem: what the environment returned.
        environment: its number: of one simulator's, and where there are several ranks and the
            error passed `RolloutDataset`, of all of them.
        iteration: in which it did, from 1, where that is known.
    """

    def __init__(self, problem: str, environment: int, iteration: int | None = None) -> None:
        super().__init__(problem, environment, iteration)
        self.problem, self.environment, self.iteration = problem, environment, iteration

    def __str__(self) -> str:
        where = "" if self.iteration is None else f"iteration {self.iteration}: "
        return f"{where}environment {self.environment} {self.problem}"


class StorageError(RunError, RuntimeError):
    """A file of the run cannot be written: a full disk, a quota.

    The message is one line that names the file and the reason.
    """


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the choices closest to ``name``, or ``""``."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(by_lower[m]) for m in matches)}?" if matches else ""


def check_choice(key: str, value: object, choices: Iterable[object]) -> None:
    """Raise `ConfigurationError` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    names = [str(choice) for choice in choices]
    if value not in choices:
        raise ConfigurationError(
            f"{key}={value!r} is not a valid choice, expected one of {', '.join(names)}"
            f"{nearest(str(value), names)}"
        )


def check_number(
    key: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> float:
    """Return ``value`` as a float, or raise `ConfigurationError` when it is not one in range."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not _is_finite(value):
        raise ConfigurationError(f"{key}={value!r} is not a finite number")
    if abs(value) > LARGEST:  # before it becomes a float: an int may be too large for one
        raise ConfigurationError(
            f"{key}={_short(value)} is beyond what float32 computes with, expected at most "
            f"{LARGEST:g}"
        )
    bounds = [
        (value > above, f"above {above:g}"),
        (value >= at_least, f"at least {at_least:g}"),
        (value <= at_most, f"at most {at_most:g}"),
    ]
    for holds, bound in bounds:
        if not holds:
            raise ConfigurationError(f"{key}={value!r} is out of range, expected a number {bound}")
    return float(value)


def _is_finite(value: Any) -> bool:
    return value == value and abs(value) != math.inf  # `math.isfinite` makes an int a float


def check_integer(key: str, value: object, *, at_least: int, at_most: int = LARGEST_INTEGER) -> int:
    """Return ``value`` as an int (``1e6`` is one), or raise `ConfigurationError`."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or value != value // 1:
        raise ConfigurationError(f"{key}={value!r} is not a whole number")
    if value < at_least:
        raise ConfigurationError(
            f"{key}={_short(value)} is out of range, expected at least {at_least}"
        )
    if value > at_most:
        raise ConfigurationError(
            f"{key}={_short(value)} is out of range, expected at most {at_most:g}"
        )
    return int(value)


def _short(value: object) -> str:
    """Return a number as it was given, the middle of a very long one left out."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no more than 4,300 digits
        return "a number of more than 4,300 digits"
    return text if len(text) <= 50 else f"{text[:20]}...{text[-20:]} ({len(text)} characters)"


def check_path(key: str, value: object) -> Path:
    """Return the path that a string says, or raise `ConfigurationError` when it is none."""
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ConfigurationError(f"{key}={value!r} is not the path of a file or a folder")
    return Path(value)


def check_memory(what: str, num_bytes: float) -> None:
    """Raise `ConfigurationError` where something needs more memory than this machine has.

    Before it is allocated: what is far too large ends in an error of the system's, or in none.
    """
    limit = system.memory()
    if num_bytes > limit:
        raise ConfigurationError(
            f"{what} would need about {num_bytes / 2**30:,.0f} GB of memory, this machine has "
            f"{limit / 2**30:,.1f}: expected smaller sizes"
        )


def check_flag(key: str, value: object) -> bool:
    """Return ``value`` if it is a bool, or raise `ConfigurationError`."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{key}={value!r} is not true or false")
    return value


def one_line(error: BaseException) -> str:
    """Return the first line of an error of somebody else's, to be quoted in one of ours."""
    return _lines(error)[0]


def whole_in_one_line(error: BaseException) -> str:
    """Return all lines of an error of a user's own code as one, as far as they fit."""
    text = " ".join(_lines(error))
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


def _lines(error: BaseException) -> list[str]:
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines or [repr(error)]
    except Exception:  # of its own methods
        return ["which does not say what it is"]
