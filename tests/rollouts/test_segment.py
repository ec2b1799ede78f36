"""Rows in worker order, and minibatches that take as many from each worker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ppo1_lightning.rollouts.segment import Minibatch, Segment, minibatch_weights
from ppo1_lightning.rollouts.units import (
    in_units,
    minibatch_units,
    shuffled_units,
)


def test_worker_order():
    rows = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])  # [T, N]
    assert in_units(rows, 4, 1).tolist() == [0, 10, 20, 1, 11, 21, 2, 12, 22, 3, 13, 23]
    assert in_units(rows, 2, 1).tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    assert in_units(rows, 1, 1).tolist() == rows.flatten().tolist()
    images = rows[..., None, None].expand(3, 4, 5, 6)
    assert in_units(images, 2, 1)[:, 2, 3].tolist() == in_units(rows, 2, 1).tolist()


def test_each_order_is_a_permutation_of_its_own():
    order = shuffled_units(3, 2, 12, 4, torch.Generator().manual_seed(0))
    assert order.shape == (3, 2, 3, 4)
    flat = order.flatten(2).flatten(0, 1)
    assert (flat.sort(-1).values == torch.arange(12)).all()
    assert len({tuple(one.tolist()) for one in flat}) == 6


def test_rows_come_first_equally_often():
    order = shuffled_units(8000, 1, 5, 5, torch.Generator().manual_seed(0))
    counts = order[:, 0, 0, 0].bincount()
    assert ((counts - 1600).abs() < 5 * (8000 * 0.2 * 0.8) ** 0.5).all()


def test_a_partial_minibatch_is_dropped():
    order = shuffled_units(1, 1, 11, 4, torch.Generator().manual_seed(0))
    assert order.shape == (1, 1, 2, 4)
    assert order.unique().numel() == 8


def test_minibatches_take_the_same_rows_from_every_worker():
    # Two workers of four rows, minibatches of two rows of each.
    order = torch.tensor([[[[0, 1], [2, 3]], [[3, 2], [1, 0]]]])
    assert minibatch_units(order, 4).tolist() == [[[0, 1, 7, 6], [2, 3, 5, 4]]]


def test_weights_of_a_minibatch_add_up_to_one():
    valid = torch.tensor([[[1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]]).bool()
    third = 1 / 3
    expected = torch.tensor([[[third, third, 0, third], [0, 0, 0, 1], [0, 0, 0, 0]]])
    torch.testing.assert_close(minibatch_weights(valid), expected)


def segment_of(rows: torch.Tensor) -> Segment:
    """Return a segment of eight rows, every field of which tells its own values apart."""
    fields = Segment._fields[:10]
    return Segment(
        *(torch.arange(8) + 100 * i for i in range(len(fields))),
        rows=rows,
        row_weights=rows / 10,
        row_advantages=rows + 1000,
        units_per_worker=4,
    )


@pytest.mark.parametrize(("n", "rows"), [(1, range(8)), (3, [0, 3, 4, 7]), (9, [0, 4])])
def test_every_nth_row_of_each_worker(n: int, rows: Sequence[int]) -> None:
    segment = segment_of(torch.zeros(1, 1, 1, dtype=torch.int64))
    valid = torch.arange(8) != 7
    minibatch = segment._replace(valid=valid).every(n)
    for name in set(Minibatch._fields) - {"weights"}:
        assert torch.equal(getattr(minibatch, name), getattr(segment, name)[list(rows)])
    expected = valid[list(rows)] / valid[list(rows)].sum()
    torch.testing.assert_close(minibatch.weights, expected)


def test_every_field_is_gathered():
    names = Segment._fields
    rows = torch.tensor([[[1, 3], [0, 7]], [[2, 4], [6, 5]], [[0, 1], [2, 3]]])
    (both,) = segment_of(rows).minibatches()
    one_by_one = list(segment_of(rows).minibatches(pass_by_pass=True))
    assert len(one_by_one) == 2  # the last pass is for measuring
    expected = rows[:2].flatten(0, 1)
    for name in set(both._fields) - {"weights", "advantages"}:
        field = expected + 100 * names.index(name)
        assert torch.equal(getattr(both, name), field)
        assert torch.equal(torch.cat([getattr(each, name) for each in one_by_one]), field)
        assert torch.equal(getattr(segment_of(rows).first_minibatch(), name), field[0])
    assert torch.equal(both.weights, expected / 10)
    assert torch.equal(both.advantages, expected + 1000)


def test_a_last_pass_is_the_mean_of_its_minibatches_means():
    rows = torch.tensor([[[0, 1], [2, 3]], [[7, 1], [4, 2]]])
    batch = segment_of(rows).last_pass()
    assert len(batch.weights) == 8
    for row in rows[1].flatten().tolist():
        assert batch.weights[row].item() == pytest.approx(row / 10 / 2)
        assert batch.advantages[row] == row + 1000
    assert batch.weights[[0, 3, 5, 6]].sum() == 0
