"""Statistics over few runs: interquartile mean, bootstrap intervals, curves on a common grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 95.0
"""Per cent of the bootstrap distribution inside an interval."""

REPETITIONS = 10_000
"""Bootstrap samples of a score."""

GRID_POINTS = 240
"""Points of a curve at most: more cannot be told apart on a page."""


def interquartile_mean(scores: NDArray[Any], axis: int | None = None) -> Any:
    """Return the mean without the lowest and the highest quarter (each rounded down).

    Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
    (https://arxiv.org/abs/2108.13264), section 4.3; the same as ``scipy.stats.trim_mean(x, 0.25)``,
    so with fewer than four scores it is the mean.
    """
    if axis is None:
        scores, axis = np.ravel(scores), 0
    count = scores.shape[axis]
    cut = count // 4
    return np.sort(scores, axis).take(range(cut, count - cut), axis).mean(axis)


def bootstrap_interval(
    strata: Sequence[NDArray[Any]], *, repetitions: int = REPETITIONS, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the interquartile mean of all scores.

    Runs are drawn with replacement within each stratum (environment), as in Agarwal et al. 2021,
    section 4.1.

    Args:
        strata: the scores ``[runs]`` of each environment.
        repetitions: bootstrap samples.
        seed: of the draws: the same runs give the same interval.

    Returns:
        Lower and upper end; NaN unless some environment has two runs.
    """
    if max(map(len, strata), default=0) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    samples = [
        scores[rng.integers(len(scores), size=(repetitions, len(scores)))] for scores in strata
    ]
    means = interquartile_mean(np.concatenate(samples, axis=1), axis=1)
    low, high = np.percentile(means, _tails())
    return float(low), float(high)


def common_grid(positions: Sequence[Floats]) -> Floats:
    """Return the points ``[G]`` at which curves are compared: all there are, or evenly spread."""
    points = np.unique(np.concatenate([*positions, np.empty(0)]))
    points = points[np.isfinite(points)]
    if len(points) <= GRID_POINTS:
        return points
    return np.linspace(points[0], points[-1], GRID_POINTS)


def resample(positions: Floats, values: Floats, grid: Floats, *, right: float = np.nan) -> Floats:
    """Return a curve ``[G]`` on ``grid``: linear inside, NaN before, ``right`` after."""
    known = np.isfinite(positions) & np.isfinite(values)
    if not known.any():
        return np.full(len(grid), np.nan)
    return np.interp(grid, positions[known], values[known], left=np.nan, right=right)


def mean_and_interval(
    curves: Floats, *, repetitions: int = 1000, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Return the mean of ``curves [n, G]`` and the ends of its bootstrap interval, ``[G]`` each.

    At each point only the curves that are not NaN count. The ends are NaN where fewer than two do.
    """
    known = np.isfinite(curves)
    filled = np.where(known, curves, 0.0)
    counts = known.sum(0)
    mean = np.where(counts > 0, filled.sum(0) / np.maximum(counts, 1), np.nan)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    several = counts > 1
    if several.any():
        drawn = np.random.default_rng(seed).multinomial(
            len(curves), np.full(len(curves), 1 / len(curves)), size=repetitions
        )
        weights = drawn @ known[:, several]  # [repetitions, G]: draws of curves that count there
        sums = drawn @ filled[:, several]
        means = np.where(weights > 0, sums / np.maximum(weights, 1), np.nan)
        low[several], high[several] = np.nanpercentile(means, _tails(), axis=0)
    return mean, low, high


def _tails() -> tuple[float, float]:
    return (100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2
