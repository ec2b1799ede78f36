"""Units of shuffling: every one in each pass, whole, in the order of time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo1_lightning.rollouts.units import by_worker, from_workers, in_units, rows_of_units


@given(
    blocks=st.integers(1, 3),
    length=st.integers(1, 4),
    workers=st.integers(1, 3),
    envs=st.integers(1, 3),
)
def test_a_unit_is_consecutive_rows_of_one_environment(
    blocks: int, length: int, workers: int, envs: int
) -> None:
    num_steps, num_envs = blocks * length, workers * envs
    rollout = torch.arange(num_steps * num_envs).view(num_steps, num_envs)
    segment = in_units(rollout, workers, length)
    num_units = len(segment) // length
    rows = rows_of_units(torch.arange(num_units), length, num_units).view(length, num_units)
    for unit in segment[rows].T:
        steps, environments = unit // num_envs, unit % num_envs
        assert (environments == environments[0]).all()
        assert (steps.diff() == 1).all()
        assert steps[0] % length == 0
    # units of a worker are behind one another, and `by_worker` has its rows
    own = by_worker(segment, workers, length)
    for worker, its_rows in enumerate(own):
        assert (its_rows % num_envs // envs == worker).all()
    assert torch.equal(from_workers(own, length), segment)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_unit_of_one_row_is_the_row(workers: int) -> None:
    rollout = torch.randn(6, 4, 2)
    one = in_units(rollout, workers, 1)
    expected = [rollout[:, envs].flatten(0, 1) for envs in torch.arange(4).chunk(workers)]
    assert torch.equal(one, torch.cat(expected))
    units = torch.tensor([[3, 1], [0, 23]])
    assert torch.equal(rows_of_units(units, 1, 24), units)
