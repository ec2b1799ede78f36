"""Generalised advantages, standardisation and explained variance, on numbers done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo1_lightning.functional.advantages import (
    discounted_sums,
    explained_variance,
    generalized_advantages,
    group_moments,
    standardize,
    standardize_segments,
)

# One column for each case, T = 4, gamma = lambda = 0.5, the row after an end a reset:
#            goes on  terminated at 1  truncated at 1  terminated at 3
REWARDS = [
    [1.0, 1.0, 1.0, 1.0],
    [2.0, 2.0, 2.0, 2.0],
    [3.0, 9.0, 9.0, 3.0],
    [4.0, 4.0, 4.0, 4.0],
]
VALUES = [
    [1.0, 1.0, 1.0, 1.0],
    [1.0, 1.0, 1.0, 1.0],
    [1.0, 6.0, 6.0, 1.0],
    [1.0, 1.0, 1.0, 1.0],
    [2.0, 2.0, 2.0, 2.0],
]
TERMINATED = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
TRUNCATED = [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
VALID = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
# delta, from the last row up: 4 + 0.5 * 2 - 1 = 4; 3 + 0.5 - 1 = 2.5; 1.5; 0.5
GOES_ON = [0.5 + 2.375 / 4, 1.5 + 3.5 / 4, 2.5 + 4 / 4, 4.0]
# at the end 2 - 1 = 1, before it 0.5 + 1 / 4, after it a fresh start at 4
TERMINATES = [0.75, 1.0, 0.0, 4.0]
# at the limit 2 + 0.5 * 6 - 1 = 4
BOOTSTRAPPED = [1.5, 4.0, 0.0, 4.0]
# the last row 4 - 1 = 3, then 2.5 + 3 / 4, ...
TERMINATES_LAST = [0.5 + 2.3125 / 4, 1.5 + 3.25 / 4, 3.25, 3.0]


def advantages(*, bootstrap_truncation: bool, rewards: Tensor | None = None) -> Tensor:
    return generalized_advantages(
        torch.tensor(REWARDS) if rewards is None else rewards,
        torch.tensor(VALUES),
        torch.tensor(TERMINATED).bool(),
        torch.tensor(TRUNCATED).bool(),
        torch.tensor(VALID).bool(),
        gamma=0.5,
        gae_lambda=0.5,
        bootstrap_truncation=bootstrap_truncation,
    )


@pytest.mark.parametrize(("bootstrap", "truncated"), [(False, TERMINATES), (True, BOOTSTRAPPED)])
def test_literal_advantages(bootstrap: bool, truncated: list[float]):
    ours = advantages(bootstrap_truncation=bootstrap)
    expected = torch.tensor([GOES_ON, TERMINATES, truncated, TERMINATES_LAST]).T
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_rewards_of_invalid_rows_are_ignored(bootstrap: bool):
    rewards = torch.tensor(REWARDS)
    rewards[~torch.tensor(VALID).bool()] = math.nan
    torch.testing.assert_close(
        advantages(bootstrap_truncation=bootstrap, rewards=rewards),
        advantages(bootstrap_truncation=bootstrap),
    )


def test_lambda_0_and_1_are_the_td_error_and_the_discounted_return():
    stream = torch.Generator().manual_seed(0)
    rewards = torch.randn(50, 2, generator=stream)
    values = torch.randn(51, 2, generator=stream)
    no, yes = torch.zeros(50, 2).bool(), torch.ones(50, 2).bool()

    def at(gae_lambda: float) -> Tensor:
        return generalized_advantages(
            rewards,
            values,
            no,
            no,
            yes,
            gamma=0.9,
            gae_lambda=gae_lambda,
            bootstrap_truncation=False,
        )

    torch.testing.assert_close(at(0.0), rewards + 0.9 * values[1:] - values[:-1])
    discounts = 0.9 ** torch.arange(51).unsqueeze(1)
    ahead = torch.cat([rewards, values[-1:]])
    returns = [(ahead[t:] * discounts[: 51 - t]).sum(0) for t in range(50)]
    torch.testing.assert_close(at(1.0), torch.stack(returns) - values[:-1])


def standardized(rows: Tensor, valid: Tensor | None = None, epsilon: float = 0.0) -> Tensor:
    valid = torch.ones_like(rows).bool() if valid is None else valid
    return standardize(rows, valid, group_moments(rows, valid), epsilon)


def test_each_group_is_standardized_by_itself():
    ours = standardized(torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 10.0, 50.0, 50.0]]))
    expected = torch.tensor([[-1.5, -0.5, 0.5, 1.5], [-1.0, -1.0, 1.0, 1.0]])
    expected[0] /= 1.25**0.5  # the population's standard deviation
    torch.testing.assert_close(ours, expected)


def test_invalid_rows_are_zero_and_do_not_count():
    rows = torch.tensor([[1.0, math.nan, 3.0, 1e9]])
    ours = standardized(rows, torch.tensor([[True, False, True, False]]))
    torch.testing.assert_close(ours, torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))


@pytest.mark.parametrize(
    ("rows", "valid", "expected"),
    [
        ([3.0, 5.0], [True, False], [0.0, 0.0]),  # one row: centred
        ([3.0, 5.0], [False, False], [0.0, 0.0]),
        ([0.1, 0.1], [True, True], [0.0, 0.0]),  # no spread: centred
        ([0.0, 0.0], [True, True], [0.0, 0.0]),
    ],
)
def test_groups_without_spread_are_centred(
    rows: list[float], valid: list[bool], expected: list[float]
):
    ours = standardized(torch.tensor([rows]), torch.tensor([valid]))
    torch.testing.assert_close(ours, torch.tensor([expected]))


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-8, 12345.678, 1e8])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_many_equal_rows_are_not_blown_up(value: float, epsilon: float):
    assert standardized(torch.full((1, 2047), value), epsilon=epsilon).abs().max() < 1e-3


@pytest.mark.parametrize("value", [1.0, 1000.0])
def test_a_spread_of_float32_rounding_is_no_spread(value: float):
    rows = torch.full((1, 100), value)
    rows[:, ::2] = torch.nextafter(rows[:, ::2], torch.tensor(2 * value))
    assert standardized(rows).abs().max() < 1e-3


@pytest.mark.parametrize(("mean", "std"), [(100.0, 0.01), (-1e4, 1.0), (1e6, 100.0), (0.0, 1e-12)])
def test_large_mean_and_small_spread(mean: float, std: float):
    noise = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    rows = (mean + std * noise.double()).float()
    exact = rows.numpy().astype(np.longdouble)
    expected = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(standardized(rows[None])[0], expected.astype(float), atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (5.0, 3.0), (-1e4, 1.0)])
def test_segments_are_standardized_as_numpy_does(mean: float, std: float):
    """Bit by bit, over the valid rows of each, with the original's own line."""
    stream = torch.Generator().manual_seed(0)
    rows = mean + std * torch.randn(3, 64, generator=stream)
    valid = torch.rand(3, 64, generator=stream) < 0.8
    ours = standardize_segments(torch.where(valid, rows, math.nan), valid)
    for own, its_valid, segment in zip(ours, valid, rows, strict=True):
        atarg = segment[its_valid].numpy()
        assert (own[its_valid].numpy() == (atarg - atarg.mean()) / atarg.std()).all()
        assert (own[~its_valid] == 0).all()


@pytest.mark.parametrize(
    ("rows", "valid"),
    [
        ([3.0, 5.0], [True, False]),
        ([3.0, 5.0], [False, False]),
        ([0.1, 0.1], [True, True]),
        ([0.0, 0.0], [True, True]),
    ],
)
def test_segments_without_spread_are_zero(rows: list[float], valid: list[bool]):
    both = torch.tensor([rows, [1.0, 3.0]]), torch.tensor([valid, [True, True]])
    assert standardize_segments(*both).tolist() == [[0, 0], [-1, 1]]


def test_epsilon_is_added_to_the_standard_deviation():
    ours = standardized(torch.tensor([[-2.0, 2.0]]), epsilon=2.0)
    torch.testing.assert_close(ours, torch.tensor([[-0.5, 0.5]]))


def test_moments_add_up_over_ranks():
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    valid = torch.tensor([[True, True, True, False]])
    halves = [group_moments(rows[:, s], valid[:, s]) for s in (slice(2), slice(2, 4))]
    assert halves[0].tolist() == [[2.0, 3.0, 5.0]]
    assert halves[1].tolist() == [[1.0, 3.0, 9.0]]
    assert torch.equal(sum(halves, torch.zeros(3)), group_moments(rows, valid))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13, 128])
def test_discounted_sums(length: int):
    stream = torch.Generator().manual_seed(length)
    terms = torch.randn(length, 4, generator=stream, dtype=torch.float64)
    decay = torch.rand(length, 4, generator=stream, dtype=torch.float64)
    expected, following = torch.empty_like(terms), torch.zeros(4, dtype=torch.float64)
    for t in reversed(range(length)):
        following = expected[t] = terms[t] + decay[t] * following
    torch.testing.assert_close(discounted_sums(terms, decay), expected, rtol=1e-13, atol=1e-13)


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0, 77.0])
    values = torch.tensor([1.0, 2.0, 4.0, -5.0])
    valid = torch.tensor([True, True, True, False])
    # Var(0, 0, -1) = 2 / 9, Var(1, 2, 3) = 2 / 3
    assert explained_variance(returns, values, valid) == pytest.approx(2 / 3)
    assert explained_variance(returns, returns, valid) == 1
    assert explained_variance(returns, returns - 100, valid) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e4 + 0.1])
@pytest.mark.parametrize("count", [2, 3, 7, 2047])
def test_explained_variance_of_constant_returns_is_nan(value: float, count: int):
    stream = torch.Generator().manual_seed(0)
    values = torch.randn(count, generator=stream)
    returns = torch.full((count,), value)
    assert math.isnan(explained_variance(returns, values, torch.ones(count).bool()))
