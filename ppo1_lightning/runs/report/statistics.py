"""Statistics over few runs: interquartile mean, bootstrap intervals, curves on a common grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

Floats = NDArray[np.float64]

GRID_POINTS = 240
"""Points of a curve at most: more cannot be told apart on a page."""

interquartile_mean = partial(trim_mean, proportiontocut=0.25)
"""The mean without the lowest and the highest quarter (each rounded down): of fewer than four
scores it is the mean.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
(https://arxiv.org/abs/2108.13264), section 4.3.
"""

# the same runs give the same interval
_interval = partial(bootstrap, confidence_level=0.95, method="percentile", vectorized=True, rng=0)


def bootstrap_interval(
    strata: Sequence[NDArray[Any]], *, repetitions: int = 10_000
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the interquartile mean of all scores.

    Runs are drawn with replacement within each stratum (environment), as in Agarwal et al. 2021,
    section 4.1.

    Args:
        strata: the scores ``[runs]`` of each environment.
        repetitions: bootstrap samples.

    Returns:
        Lower and upper end; NaN unless some environment has two runs.
    """
    several = [scores for scores in strata if len(scores) > 1]
    if not several:
        return float("nan"), float("nan")
    # one run alone is drawn each time; scipy wants two at least
    single = np.concatenate([np.empty(0), *(scores for scores in strata if len(scores) == 1)])

    def statistic(*drawn: Floats, axis: int) -> Floats:
        constant = np.broadcast_to(single, (*drawn[0].shape[:-1], len(single)))
        return interquartile_mean(np.concatenate([*drawn, constant], -1), axis=axis)

    low, high = _interval(several, statistic, n_resamples=repetitions).confidence_interval
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


def mean_and_interval(curves: Floats, *, repetitions: int = 1000) -> tuple[Floats, Floats, Floats]:
    """Return the mean of ``curves [n, G]`` and the ends of its bootstrap interval, ``[G]`` each.

    At each point only the curves that are not NaN count. The ends are NaN where fewer than two do.
    """
    mean, low, high = np.full((3, curves.shape[1]), np.nan)
    known = np.isfinite(curves)
    for counting in np.unique(known, axis=1).T:  # [n]: the curves that count at some points alike
        points = (known == counting[:, None]).all(0)
        drawn = curves[np.ix_(counting, points)]
        if len(drawn):
            mean[points] = drawn.mean(0)
        if len(drawn) > 1:
            interval = _interval((drawn,), np.mean, axis=0, n_resamples=repetitions)
            low[points], high[points] = interval.confidence_interval
    return mean, low, high
