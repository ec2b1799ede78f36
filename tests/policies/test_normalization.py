"""Running statistics against plain NumPy versions of the original's, and one step at a time."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor, nn

from ppo1_lightning import ConfigurationError
from ppo1_lightning.policies.normalization import (
    ObservationNormalizer,
    RewardNormalizer,
    StepNormalizer,
)


class Original:
    """Running mean and std as the original keeps them: float64 sums, float32 moments."""

    def __init__(self, size: int) -> None:
        self.sum = np.zeros(size)
        self.sum_squares = np.full(size, 1e-2)
        self.count = 1e-2

    def update(self, x: Any) -> None:
        self.sum += x.astype(np.float64).sum(0)
        self.sum_squares += np.square(x.astype(np.float64)).sum(0)
        self.count += len(x)

    def z(self, x: Any) -> Any:
        mean = (self.sum / self.count).astype(np.float32)
        mean_square = (self.sum_squares / self.count).astype(np.float32)
        std = np.sqrt(np.maximum(mean_square - np.square(mean), np.float32(1e-2)))
        return np.clip((x - mean) / std, -5, 5)


def observations(rows: int, *, offset: float = 0.0, seed: int = 0) -> Any:
    """Return rows of four elements: of different scales, the third constant."""
    noise = np.random.default_rng(seed).standard_normal((rows, 4))
    return (noise * [1.0, 30.0, 0.0, 0.01] + offset).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0, 1e5])
def test_observations_equal_the_original(offset: float):
    """With a large offset the float32 rounding of both moments is visible, and the same."""
    ours, original = ObservationNormalizer((4,)), Original(4)
    for seed in range(4):
        x = observations(50 + seed, offset=offset, seed=seed)
        ours.update(torch.from_numpy(x))
        original.update(x)
        expected = original.z(x)
        np.testing.assert_allclose(ours(torch.from_numpy(x)), expected, atol=1e-6, rtol=1e-6)
        assert np.abs(expected).max() <= 5


def test_before_the_first_update_observations_are_only_clipped():
    x = torch.tensor([[-7.0, -1.0, 0.5, 7.0]])
    # count 0.01, sum of squares 0.01: mean 0, std 1
    torch.testing.assert_close(
        ObservationNormalizer((4,))(x), torch.tensor([[-5.0, -1.0, 0.5, 5.0]])
    )


def test_statistics_do_not_depend_on_how_rows_arrive():
    x = torch.from_numpy(observations(60))
    whole, parts = ObservationNormalizer((4,)), ObservationNormalizer((4,))
    whole.update(x)
    for rows in x.split([1, 0, 19, 40]):
        parts.update(rows)
    assert parts.count.item() == pytest.approx(60.01)
    torch.testing.assert_close(whole.state_dict(), parts.state_dict())


def test_no_row_is_no_change():
    normalizer = ObservationNormalizer((4,))
    normalizer.update(torch.from_numpy(observations(10)))
    before = {name: t.clone() for name, t in normalizer.named_buffers()}
    normalizer.update(torch.empty(0, 4))
    torch.testing.assert_close(dict(normalizer.named_buffers()), before, rtol=0, atol=0)
    assert normalizer.count.item() == pytest.approx(10.01)


def test_sums_stay_float64_when_the_module_is_converted():
    normalizer = ObservationNormalizer((4,)).to(torch.bfloat16)
    for _ in range(3):
        normalizer.update(torch.full((1, 4), 1 + 2**-20))
    assert normalizer.sum.dtype == torch.float64
    assert (normalizer.sum == 3 + 3 * 2**-20).all()


def rollout(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards, done and valid ``[T, N]``: the row after each end is a reset."""
    stream = np.random.default_rng(seed)
    rewards = (3 + 2 * stream.standard_normal((40, 3))).astype(np.float32)
    done = stream.random((40, 3)) < 0.15
    valid = np.ones_like(done)
    for t in range(1, 40):
        valid[t] = ~done[t - 1]
        done[t] &= valid[t]
    done[-1] = False  # so that the next rollout starts with transitions
    rewards[~valid] = 0
    return torch.from_numpy(rewards), torch.from_numpy(done), torch.from_numpy(valid)


def scaled_step_by_step(rollouts: list[tuple[Tensor, Tensor, Tensor]], gamma: float) -> list[Any]:
    """Scale each step's rewards as VecNormalize does, with batches' means and variances."""
    mean, variance, count = 0.0, 1.0, 1e-4
    under_way = np.zeros(3)
    scaled = []
    for rewards, done, valid in (map(Tensor.numpy, fields) for fields in rollouts):
        scaled.append(np.empty_like(rewards))
        for t, real in enumerate(valid):
            under_way[real] = rewards[t, real] + gamma * under_way[real]
            if batch := int(real.sum()):
                delta, total = under_way[real].mean() - mean, count + batch
                squares = variance * count + under_way[real].var() * batch
                variance = (squares + delta**2 * count * batch / total) / total
                mean, count = mean + delta * batch / total, total
            scaled[-1][t] = np.clip(rewards[t] / np.sqrt(variance + 1e-8), -10, 10)
            under_way[done[t]] = 0.0
    return scaled


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_rewards_equal_a_step_by_step_reference(gamma: float):
    rollouts = [rollout(seed) for seed in range(3)]
    normalizer = RewardNormalizer(gamma)
    for given, expected in zip(rollouts, scaled_step_by_step(rollouts, gamma), strict=True):
        before = given[0].clone()
        scaled = normalizer(*given)
        assert scaled.dtype == torch.float32
        np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(given[0], before)


def test_rewards_are_clipped():
    rewards = torch.zeros(200, 1)
    rewards[177] = 1e6
    done, valid = torch.zeros(200, 1).bool(), torch.ones(200, 1).bool()
    assert RewardNormalizer(0.0)(rewards, done, valid).max() == 10
    assert RewardNormalizer(0.0, clip=20)(rewards, done, valid).max() == pytest.approx(
        178**0.5, rel=0.01
    )


def test_rewards_of_zero_stay_zero():
    no, yes = torch.zeros(5, 1).bool(), torch.ones(5, 1).bool()
    assert (RewardNormalizer(0.99)(torch.zeros(5, 1), no, yes) == 0).all()


def test_statistics_of_earlier_checkpoints_go_on():
    """They held count, sum and sum of squares."""
    normalizer, again = RewardNormalizer(0.9), RewardNormalizer(0.9)
    normalizer(*rollout(0))
    mean, variance, count = normalizer.mean, normalizer.variance, normalizer.count
    moments = np.array([count, count * mean, count * (variance + mean**2)])
    again.load_state_dict({"_extra_state": {"moments": torch.from_numpy(moments)}})
    again.under_way = normalizer.under_way
    torch.testing.assert_close(again(*rollout(1)), normalizer(*rollout(1)))


VECTOR = Box(-np.inf, np.inf, (4,), np.float32)
NOTHING = torch.device("cpu")


def test_observations_are_shown_as_vecnormalize_does():
    """Each step's rows are counted first; the last ones of episodes are shown but not counted."""
    normalizer = StepNormalizer(VECTOR)
    stream = np.random.default_rng(0)
    seen = np.zeros((0, 4), np.float32)
    mean, variance, count = np.zeros(4), np.ones(4), 1e-4
    for step in range(50):
        rows = observations(3, offset=20.0, seed=step)
        final = stream.random(3) < 0.3
        counted = rows[~final].astype(float)
        if total := len(counted):
            seen = np.concatenate([seen, rows[~final]])
            delta, whole = counted.mean(0) - mean, count + total
            squares = variance * count + counted.var(0) * total + delta**2 * count * total / whole
            mean, variance, count = mean + delta * total / whole, squares / whole, whole
        expected = np.clip((rows - mean) / np.sqrt(variance + 1e-8), -10, 10)
        shown = rows.copy()
        normalizer.observe(shown, final, NOTHING)
        np.testing.assert_allclose(shown, expected, atol=1e-5)
        np.testing.assert_array_equal(normalizer(torch.from_numpy(rows)), shown)
    np.testing.assert_allclose(normalizer.mean, seen.mean(0), rtol=1e-4)
    assert normalizer.count == pytest.approx(len(seen) + 1e-4)
    outlier = torch.full((1, 4), 1e9)
    assert (normalizer(outlier) == 10).all()


def test_of_a_dict_the_vector_is_normalised():
    space = Dict(action_mask=Box(0, 1, (2,), np.float32), vector=VECTOR)
    normalizer, plain = StepNormalizer(space), StepNormalizer(VECTOR)
    rows = observations(6, offset=3.0)
    shown, whole = rows.copy(), np.concatenate([np.ones((6, 2), np.float32), rows], 1)
    nowhere = np.zeros(6, np.bool_)
    plain.observe(shown, nowhere, NOTHING)
    normalizer.observe(whole, nowhere, NOTHING)
    assert (whole[:, :2] == 1).all()
    np.testing.assert_array_equal(whole[:, 2:], shown)


def test_what_is_not_finite_is_not_counted():
    normalizer = StepNormalizer(VECTOR)
    rows = observations(3)
    rows[1, 2] = np.nan
    normalizer.observe(rows, np.zeros(3, np.bool_), NOTHING)
    assert normalizer.count == 2 + 1e-4
    assert np.isfinite(normalizer.mean).all()


def test_images_are_not_normalised_step_by_step():
    with pytest.raises(ConfigurationError, match=r"for vectors.*expected false"):
        StepNormalizer(Box(0, 255, (4, 84, 84), np.uint8))


def trained(module: nn.Module) -> nn.Module:
    if isinstance(module, ObservationNormalizer):
        module.update(torch.from_numpy(observations(100, offset=50.0)))
    elif isinstance(module, StepNormalizer):
        module.observe(observations(100, offset=50.0), np.zeros(100, np.bool_), NOTHING)
    else:
        module(*rollout(0))
    return module


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda: ObservationNormalizer((4,)), (torch.from_numpy(observations(9, seed=5)),)),
        (lambda: StepNormalizer(VECTOR), (torch.from_numpy(observations(9, seed=5)),)),
        # Environments are reset when a run is resumed, and so are the returns under way.
        (lambda: RewardNormalizer(0.0), rollout(1)),
    ],
    ids=["observations", "step by step", "rewards"],
)
def test_state_dict_round_trip(make: Any, arguments: tuple[Tensor, ...]):
    module, again = trained(make()), make()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one in (module, again):
        trained(one)  # goes on from the same sums
    assert torch.equal(module(*arguments), again(*arguments))
