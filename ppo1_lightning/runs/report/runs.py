"""A run as its folder tells it: configuration, rows of metrics, videos."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.runs.untrusted import open_inside, printable, read_yaml

SCORE = "episode_return_mean"
"""The column that runs are compared by: mean return of the last 100 training episodes."""

METRICS_BYTES = 2**30
"""Of a CSV file, at most."""

UNKNOWN_SEED = "?"

_BUDGETS = {
    "total_steps": "env_steps",
    "total_episodes": "episodes",
    "total_iterations": "iteration",
    "total_seconds": "seconds",
}


_Container = TypeVar("_Container", dict, list)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where it is.
        name: its folder, as short as tells it from the other runs of the report.
        config: the resolved configuration, empty where it was not saved.
        choices: the option of each config group, such as ``{"env": "cartpole"}``.
        overrides: what the command line set, as text.
        metrics: columns ``[rows]``, NaN where a row has no value; ``env_steps`` never decreases.
        videos: the MP4 and GIF files, in the order of their names.
    """

    folder: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    videos: tuple[Path, ...] = ()

    @property
    def env(self) -> str:
        """Id of the environment."""
        return str(select(self.config, "env.id") or "unknown environment")

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return str(self.config.get("seed", UNKNOWN_SEED))

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """Environment steps ``[rows]``."""
        return self.metrics.get("env_steps", np.empty(0))

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """Wall time of training ``[rows]``: the sum of each row's steps over its speed.

        Pauses between an interrupted run and its continuation are not in it.
        """
        speed = self.column("steps_per_second")
        known = speed[np.isfinite(speed) & (speed > 0)]
        if not len(known):
            return np.full(len(self.steps), np.nan)
        speed = np.where(np.isfinite(speed) & (speed > 0), speed, np.median(known))
        return np.cumsum(np.diff(self.steps, prepend=0.0) / speed)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a column ``[rows]``, NaN where the run does not have it."""
        if name == "seconds":
            return self.seconds
        return self.metrics.get(name, np.full(len(self.steps), np.nan))

    def last(self, name: str) -> float:
        """Return the last value of a column, NaN without one."""
        values = self.column(name)
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else float("nan")

    @property
    def score(self) -> float:
        """The last mean return."""
        return self.last(SCORE)

    @property
    def best(self) -> float:
        """The highest mean return, NaN without one."""
        return float(np.nanmax(self.column(SCORE))) if math.isfinite(self.score) else math.nan

    @property
    def speed(self) -> float:
        """Median of the rows' steps per second."""
        speed = self.column("steps_per_second")
        return float(np.nanmedian(speed)) if np.isfinite(speed).any() else float("nan")

    @property
    def budget(self) -> tuple[str, float] | None:
        """The limit that is set: its key in the configuration, and its value."""
        given = ((key, self.config.get(key)) for key in _BUDGETS)
        limits = ((key, limit) for key, limit in given if isinstance(limit, int | float))
        return next(limits, None)

    @property
    def status(self) -> str:
        """How far it is, in words."""
        if not len(self.steps):
            return "no rows"
        if math.isnan(self.share):
            return "unknown"
        return "finished" if self.share >= 1 else f"{math.floor(100 * self.share)} % done"

    @property
    def share(self) -> float:
        """Part of the budget that is spent, in [0, 1], NaN where it is not known."""
        key, limit = self.budget or ("", 0)
        if limit <= 0:
            return float("nan")
        values = self.column(_BUDGETS[key])
        if not len(values):
            return float("nan")
        # a run's last iteration always has a row; its seconds are those of training alone
        before = values[-2] if len(values) > 1 else 0
        slack = values[-1] - before if key == "total_seconds" else 0
        if values[-1] + slack >= limit:
            return 1.0
        part = float(values[-1]) / limit
        return part if math.isnan(part) else max(0.0, part)


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Read all runs in ``folders`` and below.

    Raises:
        ConfigurationError: one is not a folder, there is no run, or none has metrics.
    """
    folders = [Path(folder) for folder in folders]
    places: dict[Path, Path] = {}  # by their real paths: folders may overlap
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"{folder} is not a folder, expected that of a run or a sweep")
        for place in sorted(_places(folder), key=_in_order):
            places.setdefault(place.resolve(), place)
    names = ", ".join(map(str, folders))
    if not places:
        raise ConfigurationError(
            f"no run in {names}, expected folders with csv/metrics.csv (logger=csv writes it)"
        )
    shared = common_folder([real.parent for real in places])
    runs = [read_run(place, os.path.relpath(real, shared)) for real, place in places.items()]
    if not any(len(run.steps) for run in runs):
        raise ConfigurationError(
            f"no run in {names} has a row of metrics yet, expected some in "
            "csv/metrics.csv (logger=csv writes it)"
        )
    return runs


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the folder that holds all of these absolute ones.

    Raises:
        ConfigurationError: they are on several drives.
    """
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        found = ", ".join(map(str, folders))
        raise ConfigurationError(f"{found} are on several drives, expected one") from None


def _places(folder: Path) -> set[Path]:
    """Return the folders of runs in a folder; what cannot be looked into is passed over."""
    markers = {"csv": "metrics.csv", ".hydra": "resolved.yaml"}
    inside = ((Path(place), files) for place, _, files in os.walk(folder))
    return {p.parent for p, files in inside if p != folder and markers.get(p.name) in files}


def read_run(folder: Path, name: str = "") -> Run:
    """Read one run; what its folder does not hold, or cannot be read, is left empty."""
    hydra = folder / ".hydra"
    words = _yaml(hydra / "overrides.yaml", list)
    overrides = [str(word).lstrip("+~").partition("=") for word in words]
    choices = select(_yaml(hydra / "hydra.yaml", dict), "hydra.runtime.choices")
    choices = choices if isinstance(choices, dict) else {}
    return Run(
        folder=folder,
        name=printable(name or folder.name),
        config=_yaml(hydra / "resolved.yaml", dict) or _yaml(hydra / "config.yaml", dict),
        choices={str(k): str(v) for k, v in choices.items() if v is not None},
        overrides={key: value for key, _, value in overrides},
        metrics=read_metrics(folder / "csv" / "metrics.csv", folder),
        videos=_videos(folder),
    )


def read_metrics(path: Path, folder: Path | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a CSV file, one row for each value of ``env_steps``.

    Where the steps go back, a run was continued from before: the earlier rows after that point are
    left out. Rows of the same step are one. What is no number is NaN; a row cut short is skipped.
    ``folder`` is the one that it is read from, see `open_inside`; None: its own.
    """
    folder = folder or path.parent
    rows: list[dict[str, float]] = []
    with (
        suppress(OSError, csv.Error),
        open_inside(path, folder, METRICS_BYTES) as binary,
        TextIOWrapper(binary, "utf-8", "replace", newline="") as text,
    ):
        lines = csv.reader(text)
        header = next(lines, [])
        for cells in lines:
            if len(cells) < len(header):
                continue
            row = dict(zip(header, map(_number, cells), strict=False))
            step = row.get("env_steps", np.nan)
            if not np.isfinite(step):
                continue
            while rows and rows[-1]["env_steps"] > step:
                rows.pop()
            if rows and rows[-1]["env_steps"] == step:
                rows[-1] |= {name: value for name, value in row.items() if np.isfinite(value)}
            else:
                rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def select(config: Any, key: str) -> Any:
    """Return the value of a dotted key, None where there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _yaml(path: Path, kind: type[_Container]) -> _Container:
    """Return the content of a YAML file, empty where it cannot be read or is of another kind."""
    try:
        content = read_yaml(path, path.parents[1])
    except (OSError, ValueError):
        return kind()
    return content if isinstance(content, kind) else kind()


def _videos(run: Path) -> tuple[Path, ...]:
    """Return the videos; a GIF beside an MP4 of the same name shows the same.

    Links are left out: a page must not embed what lies outside of the run's folder.
    """
    inside = run.resolve() / "videos"
    found = [f for f in (run / "videos").glob("*") if f.suffix in (".mp4", ".gif") and f.is_file()]
    files = sorted((f for f in found if f.resolve() == inside / f.name), key=_in_order)
    movies = {file.stem for file in files if file.suffix == ".mp4"}
    return tuple(f for f in files if f.suffix == ".mp4" or f.stem not in movies)


def _in_order(path: Path) -> list[Any]:
    """Sort key of a path that puts job 2 before job 10."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in (*path.parts[:-1], path.stem, path.name)
    ]
