"""Statistics against literal values, enumeration of all resamples, and normal theory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ppo1_lightning.runs.report.statistics import (
    GRID_POINTS,
    bootstrap_interval,
    common_grid,
    interquartile_mean,
    mean_and_interval,
    probability_of_improvement,
    resample,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([5.0], 5.0),
        ([1.0, 2.0, 6.0], 3.0),  # a quarter of three, rounded down, is none
        ([-100.0, 1.0, 3.0, 1e9], 2.0),
        ([9.0, 1.0, 2.0, 3.0, 4.0], 3.0),
        (list(range(8)), 3.5),
    ],
)
def test_interquartile_mean(scores: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected)
    assert interquartile_mean(np.array([scores, scores]), axis=1) == pytest.approx([expected] * 2)


def test_interval_is_that_of_all_resamples() -> None:
    """Of three scores there are 27 resamples: their percentiles, enumerated."""
    scores = np.array([1.0, 4.0, 10.0])
    means = [np.mean(draw) for draw in itertools.product(scores, repeat=3)]
    low, high = bootstrap_interval([scores], repetitions=200_000)
    expected = np.percentile(means, (2.5, 97.5), method="inverted_cdf")
    assert (low, high) == pytest.approx(expected)


def test_a_stratum_of_one_run_is_in_every_resample() -> None:
    low, high = bootstrap_interval([np.array([0.0, 1.0]), np.array([10.0])])
    assert (low, high) == pytest.approx((10 / 3, 4))


def test_interval_of_many_scores_is_the_normal_one() -> None:
    """The variance of an interquartile mean of normal scores is 1.1948 / n (trimmed mean)."""
    scores = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval([scores])
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(1.1948 / 400), rel=0.15)


def test_strata_keep_their_share() -> None:
    """Two environments of constant scores leave nothing to chance, but pooled ones would."""
    low, high = bootstrap_interval([np.zeros(5), np.ones(5)])
    assert (low, high) == (0.5, 0.5)
    pooled_low, pooled_high = bootstrap_interval([np.repeat([0.0, 1.0], 5)])
    assert pooled_low < 0.2 < 0.8 < pooled_high


def test_intervals_of_several_points_are_those_of_each() -> None:
    scores = np.random.default_rng(2).normal(size=(3, 5))
    single = np.array([[1.0], [2.0], [3.0]])
    together = np.stack(bootstrap_interval([scores, single], repetitions=50_000), -1)
    for point, ends in enumerate(together):
        alone = bootstrap_interval([scores[point], single[point]], repetitions=50_000)
        assert ends == pytest.approx(alone, abs=0.05)


def test_probability_of_improvement_counts_pairs() -> None:
    first = [np.array([1.0, 2.0, 3.0]), np.array([10.0])]
    other = [np.array([2.0, 0.0]), np.array([9.0, 11.0, 12.0, 10.0])]
    # of the pairs on the first environment 4 are won and 1 a draw, on the second 1 and 1
    assert probability_of_improvement(first, other)[0] == pytest.approx((4.5 / 6 + 1.5 / 4) / 2)
    backwards = 1 - probability_of_improvement(other, first)[0]
    assert backwards == pytest.approx((4.5 / 6 + 1.5 / 4) / 2)


def test_interval_of_a_probability_is_that_of_all_resamples() -> None:
    first, other = np.array([1.0, 3.0]), np.array([2.0, 2.0, 4.0])
    drawn = itertools.product(
        itertools.product(first, repeat=2), itertools.product(other, repeat=3)
    )
    expected = [np.mean([x > y for x in xs for y in ys]) for xs, ys in drawn]
    _, *ends = probability_of_improvement([first], [other], repetitions=100_000)
    assert ends == pytest.approx(np.percentile(expected, (2.5, 97.5), method="inverted_cdf"))
    assert np.isnan(probability_of_improvement([first[:1]], [other[:1]])[1:]).all()


def test_one_score_has_no_interval() -> None:
    assert np.isnan(bootstrap_interval([np.array([3.0])])).all()
    assert np.isnan(bootstrap_interval([])).all()


def test_curves_of_different_length_on_a_grid() -> None:
    long, short = np.array([0.0, 10, 20, 30]), np.array([0.0, 5, 10])
    grid = common_grid([long, short, np.array([np.nan])])
    assert grid.tolist() == [0, 5, 10, 20, 30]
    a = resample(long, 2 * long, grid)
    b = resample(short, np.array([np.nan, 5, 0]), grid)
    assert a.tolist() == [0, 10, 20, 40, 60]
    np.testing.assert_equal(b, [np.nan, 5, 0, np.nan, np.nan])
    np.testing.assert_equal(resample(short, short, grid, right=9)[3:], [9, 9])
    assert np.isnan(resample(short, np.full(3, np.nan), grid)).all()
    mean, low, high = mean_and_interval(np.stack([a, b]))
    assert mean.tolist() == [0, 7.5, 10, 40, 60]
    np.testing.assert_equal(low, [np.nan, 5, 0, np.nan, np.nan])
    np.testing.assert_equal(high, [np.nan, 10, 20, np.nan, np.nan])


def test_band_holds_the_mean_and_narrows_with_more_curves() -> None:
    curves = np.random.default_rng(0).normal(size=(100, 7))
    few, many = (mean_and_interval(curves[:n]) for n in (10, 100))
    for mean, low, high in (few, many):
        assert ((low < mean) & (mean < high)).all()
    np.testing.assert_allclose(many[2] - many[1], 2 * 1.96 / 10, rtol=0.25)
    assert (few[2] - few[1] > many[2] - many[1]).all()


def test_long_curves_are_thinned_to_their_ends() -> None:
    grid = common_grid([np.arange(1e6)])
    assert (len(grid), grid[0], grid[-1]) == (GRID_POINTS, 0, 1e6 - 1)
    assert len(common_grid([])) == 0
