"""Curves of groups of runs: on one environment, or on all of them, scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppo1_lightning.runs.report.groups import Group, scales_of
from ppo1_lightning.runs.report.runs import SCORE, Run
from ppo1_lightning.runs.report.statistics import (
    Floats,
    bootstrap_interval,
    common_grid,
    interquartile_mean,
    mean_and_interval,
    resample,
)


@dataclass(frozen=True)
class Curve:
    """Mean and interval of a group's runs, ``[G]`` each; NaN where there is none."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    complete: NDArray[np.bool_]
    """Where all of the group's runs count: none has ended, or not logged anything yet."""


def curve_of(group: Group, env: str, column: str, x_axis: str) -> Curve | None:
    """Return the curve of a group's runs on one environment, None where none has the column.

    A grey group has no interval: of many it takes long, and it is not drawn. Over wall time a
    finished run keeps its last value until the slowest of its group has finished.
    """
    runs = group.of(env)
    runs = [run for run in runs if np.isfinite(run.column(column) + run.column(x_axis)).any()]
    if not runs:
        return None
    grid = common_grid([run.column(x_axis)[np.isfinite(run.column(column))] for run in runs])
    stays = [x_axis == "seconds" and run.share >= 1 for run in runs]
    curves = np.stack(
        [
            resample(
                run.column(x_axis),
                run.column(column),
                grid,
                right=run.last(column) if stay else np.nan,
            )
            for run, stay in zip(runs, stays, strict=True)
        ]
    )
    repetitions = 0 if group.colour is None else 1000
    means = mean_and_interval(curves, repetitions=repetitions)
    return Curve(grid, *means, np.asarray(np.isfinite(curves).all(0)))


def sample_efficiency(groups: Sequence[Group], envs: Sequence[str]) -> list[tuple[Group, Curve]]:
    """Return the curves of groups over several environments: interquartile means of scaled returns.

    As far as all runs have a return: from the last one's first to the shortest one's end. Scaled as
    final scores are, see `scales_of`. Agarwal et al. 2021, figure 7.

    Returns:
        One for each group that has runs on all environments; none where fewer than two have.
    """
    scored = [(group, [group.scored(env) for env in envs]) for group in groups]
    scored = [(group, of_envs) for group, of_envs in scored if all(of_envs)]
    if len(envs) < 2 or len(scored) < 2:
        return []
    runs = [run for _, of_envs in scored for of_env in of_envs for run in of_env]
    known = [run.column("env_steps")[np.isfinite(run.column(SCORE))] for run in runs]
    first, last = max(map(np.min, known)), min(map(np.max, known))
    grid = common_grid([steps[(steps >= first) & (steps <= last)] for steps in known])
    if not len(grid):
        return []
    scale = scales_of([run for group in groups for run in group.runs])

    def scaled(env: str, runs: Sequence[Run]) -> Floats:
        returns = [resample(run.column("env_steps"), run.column(SCORE), grid) for run in runs]
        return scale[env](np.stack(returns, -1))

    found = []
    for group, of_envs in scored:
        strata = [scaled(env, of_env) for env, of_env in zip(envs, of_envs, strict=True)]
        mean = interquartile_mean(np.concatenate(strata, -1), axis=-1)
        low, high = np.full((2, len(grid)), np.nan)
        if group.colour is not None:
            low, high = bootstrap_interval(strata, repetitions=1000)
        found.append((group, Curve(grid, mean, low, high, np.ones(len(grid), bool))))
    return found
