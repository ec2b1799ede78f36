"""Runs put together by what was swept: repetitions with other seeds share a group and a colour."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppo1_lightning.runs.report.runs import Run, select

COLOURS = 8
"""Colours of the palette."""

HIGHLIGHTED = 5
"""Groups that have a colour where there are more groups than colours: those of the best scores."""

_NOT_SWEPT = re.compile(
    r"^(seed|env|env\.(id|num_threads|pin_threads)|total_\w+|run|resume|ckpt_path|init_from|"
    r"task_name|tags|optimized_metric|algo\.log_every|trainer\.enable_\w+|"
    r"(logger|callbacks|hydra|evaluation)([./].*)?)$"
)
"""Keys that do not make another group: they change no update; environments have own charts."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        label: the swept keys and their values.
        values: the values alone.
        colour: number of the group's colour; None is grey, for all but the best of many groups.
        runs: of all environments.
    """

    label: str
    values: str
    colour: int | None
    runs: tuple[Run, ...]

    @property
    def dashed(self) -> bool:
        """Of the palette's second half, which is dashed for who tells fewer colours apart."""
        return self.colour is not None and self.colour >= COLOURS // 2

    def of(self, env: str) -> list[Run]:
        """Return the runs on one environment."""
        return [run for run in self.runs if run.env == env]

    def scored(self, env: str) -> list[Run]:
        """Return those of them that have a score."""
        return [run for run in self.of(env) if math.isfinite(run.score)]


def environments(runs: Sequence[Run]) -> list[str]:
    """Return the ids of all environments, in the order of the runs."""
    return list(dict.fromkeys(run.env for run in runs))


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys that make the groups: overrides whose values differ between the runs.

    Of runs without a saved command line (trials of a search), every configured value that differs.
    """
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    keys |= dict.fromkeys(differences([run for run in runs if not run.overrides]))
    return [key for key in keys if not _NOT_SWEPT.match(key) and _varies(runs, key)]


def _varies(runs: Sequence[Run], key: str) -> bool:
    """Tell whether runs differ in ``key``, other than by what their environments ask for."""
    values = {run.env: value_of(run, key) for run in runs}
    return any(value_of(run, key) != values[run.env] for run in runs)


def value_of(run: Run, key: str) -> str:
    """Return what a run has for a key: an option of a group, or a value of the configuration."""
    if key in run.choices:
        return run.choices[key]
    return plain(select(run.config, key))


def plain(value: Any) -> str:
    """Return a value as it is written in a config; what makes an object as a call of it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, Mapping) and "_target_" in value:
        arguments = [plain(v) for k, v in value.items() if k not in ("_target_", "_partial_")]
        return f"{str(value['_target_']).rpartition('.')[2]}({', '.join(arguments)})"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Return the groups in the order of their values, numbers by size."""
    keys = swept_keys(runs)
    by_values: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_values.setdefault(tuple(value_of(run, key) for key in keys), []).append(run)
    ordered = sorted(by_values, key=lambda values: [_in_order(value) for value in values])
    colours = _colours([by_values[values] for values in ordered])
    return [
        Group(
            _label(keys, values, by_values[values]),
            ", ".join(values),
            colour,
            tuple(by_values[values]),
        )
        for values, colour in zip(ordered, colours, strict=True)
    ]


def _colours(members: Sequence[Sequence[Run]]) -> list[int | None]:
    """Return a colour for each group, or for the best ones where the colours do not go round."""
    if len(members) <= COLOURS:
        return list(range(len(members)))
    scales = scales_of([run for group in members for run in group])

    def mean_scaled_score(runs: Sequence[Run]) -> float:
        known = [scales[run.env](run.score) for run in runs if math.isfinite(run.score)]
        return sum(known) / len(known) if known else -math.inf

    ranked = sorted(range(len(members)), key=lambda group: -mean_scaled_score(members[group]))
    best = ranked[:HIGHLIGHTED]
    return [best.index(group) if group in best else None for group in range(len(members))]


def scales_of(runs: Sequence[Run]) -> dict[str, Callable[[Any], Any]]:
    """Return for each environment what maps its lowest score to 0, its highest to 1."""
    scales: dict[str, Callable[[Any], Any]] = {}
    for env in environments(runs):
        known = [run.score for run in runs if run.env == env and math.isfinite(run.score)]
        low, span = (min(known), (max(known) - min(known)) or 1.0) if known else (0.0, 1.0)
        scales[env] = lambda score, low=low, span=span: (score - low) / span
    return scales


def _label(keys: Sequence[str], values: Sequence[str], runs: Sequence[Run]) -> str:
    if not keys:
        return runs[0].name if len(runs) == 1 else "all runs"
    choices = runs[0].choices  # an option's name says enough
    last = Counter(key.rpartition(".")[2] for key in keys)
    names = [name if last[name := key.rpartition(".")[2]] == 1 else key for key in keys]
    return ", ".join(
        value if key in choices else f"{name} {value}"
        for key, name, value in zip(keys, names, values, strict=True)
    )


def _in_order(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the configured values that differ between runs: each run's, by dotted key.

    Seeds and the folders of the runs are left out.
    """
    leaves = [dict(_leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for run in leaves for key in run)
    table = {key: [run.get(key, "-") for run in leaves] for key in keys}
    return {k: v for k, v in table.items() if len(set(v)) > 1 and k not in ("seed", "algo.seed")}


def shared(runs: Sequence[Run]) -> dict[str, str]:
    """Return the configured values that all runs share, by dotted key."""
    leaves = [dict(_leaves(run.config)) for run in runs]
    first = leaves[0]
    return {key: value for key, value in first.items() if all(r.get(key) == value for r in leaves)}


def _leaves(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            found += _leaves(value, f"{key}.")
        elif not re.search(r"(default_root_dir|save_dir|dirpath|purge_step|ckpt_path)$", key):
            found.append((key, plain(value)))
    return found
