"""Statistics over few runs: interquartile mean, probability of improvement, bootstrap intervals,
curves on a common grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

# the same runs give the same interval; batches bound the memory of many
_interval = partial(
    bootstrap, confidence_level=0.95, method="percentile", vectorized=True, batch=50, rng=0
)


def bootstrap_interval(
    strata: Sequence[NDArray[Any]], *, repetitions: int = 10_000
) -> tuple[Floats, Floats]:
    """Return the 95 % percentile bootstrap interval of the interquartile mean of all scores.

    Runs are drawn with replacement within each stratum (environment), as in Agarwal et al. 2021,
    section 4.1.

    Args:
        strata: the scores ``[..., runs]`` of each environment.
        repetitions: bootstrap samples.

    Returns:
        Lower and upper end ``[...]``; NaN unless some environment has two runs.
    """
    return _stratified(
        lambda *drawn: interquartile_mean(np.concatenate(drawn, -1), axis=-1), strata, repetitions
    )


def probability_of_improvement(
    scores: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], *, repetitions: int = 10_000
) -> tuple[float, float, float]:
    """Return how likely a run of one group scores higher than one of another, a draw as a half.

    The mean over environments of the Mann-Whitney statistic: Agarwal et al. 2021, section 4.3. Only
    which of two scores is higher matters, not by how much.

    Args:
        scores, others: the scores ``[runs]`` of each environment, the same ones of both groups.
        repetitions: bootstrap samples.

    Returns:
        The probability and its 95 % interval, as in `bootstrap_interval`.
    """

    def probability(*drawn: Floats) -> Floats:
        pairs = zip(drawn[: len(scores)], drawn[len(scores) :], strict=True)
        differences = (one[..., :, None] - other[..., None, :] for one, other in pairs)
        return np.mean([(np.sign(d).mean((-2, -1)) + 1) / 2 for d in differences], 0)

    strata = [*scores, *others]
    low, high = _stratified(probability, strata, repetitions)
    return float(probability(*strata)), float(low), float(high)


def _stratified(
    statistic: Callable[..., Floats], strata: Sequence[NDArray[Any]], repetitions: int
) -> tuple[Floats, Floats]:
    """Return the ends of a statistic's interval: runs are drawn anew within each stratum."""
    several = [scores for scores in strata if scores.shape[-1] > 1]
    if not several:
        nothing = np.full(strata[0].shape[:-1] if strata else (), np.nan)
        return nothing, nothing

    def of_all(*drawn: Floats, axis: int) -> Floats:
        left, shape = iter(drawn), (*drawn[0].shape[:-1], 1)
        # one run alone is drawn each time; scipy wants two at least
        return statistic(
            *(
                next(left) if scores.shape[-1] > 1 else np.broadcast_to(scores[..., None, :], shape)
                for scores in strata
            )
        )

    interval = _interval(several, of_all, n_resamples=repetitions, axis=-1).confidence_interval
    return interval.low, interval.high


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

    At each point only the curves that are not NaN count. The ends are NaN where fewer than two do,
    and with no ``repetitions``.
    """
    mean, low, high = np.full((3, curves.shape[1]), np.nan)
    known = np.isfinite(curves)
    for counting in np.unique(known, axis=1).T:  # [n]: the curves that count at some points alike
        points = (known == counting[:, None]).all(0)
        drawn = curves[np.ix_(counting, points)]
        if len(drawn):
            mean[points] = drawn.mean(0)
        if len(drawn) > 1 and repetitions:
            interval = _interval((drawn,), np.mean, axis=0, n_resamples=repetitions)
            low[points], high[points] = interval.confidence_interval
    return mean, low, high
