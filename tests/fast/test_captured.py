"""What goes into a captured graph and comes out of it, with a capture that calls again."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.fast.captured import KEPT, CapturedGraph
from ppo1_lightning.fast.nodes import written


class CalledAgain(CapturedGraph):
    """Captures without a GPU."""

    captures = 0

    def _capture(self, fixed: Sequence[Tensor], row: Sequence[Tensor]) -> Any:
        self.captures += 1
        slots = [tensor.clone() for tensor in row]
        return SimpleNamespace(replay=lambda: self._function(*fixed, *slots)), slots


def step(weight: Tensor, x: Tensor, result: Tensor) -> None:
    result.copy_(weight * x)
    weight.add_(x)


@pytest.mark.parametrize("ends", [[4], [1, 4]])
def test_each_row_is_read_and_written_in_its_place(ends: list[int]):
    graph = CalledAgain(step, written={2})
    weight, x = torch.ones(()), torch.arange(1.0, 5.0)
    result = torch.full((4,), torch.nan)
    run, first = graph.bind([weight], [x, result]), 0
    for end in ends:
        run(first, end)
        first = end
    assert result.tolist() == [1 * 1, 2 * 2, 4 * 3, 7 * 4]
    assert weight == 11


def test_it_is_captured_once_for_tensors_that_stay_where_they_are():
    graph = CalledAgain(step, written={2})
    weights = [torch.ones(()) for _ in range(KEPT + 1)]
    for weight in (weights[0], weights[0], weights[1], weights[0]):
        graph.bind([weight], [torch.ones(1), torch.ones(1)])(0, 1)
    assert graph.captures == 2
    graph.bind([weights[2]], [torch.ones(1), torch.ones(1)])
    assert len(graph._captured) == KEPT
    assert (weights[0], weights[1]) == (4, 2)


def test_what_is_written_is_found_through_views_and_not_through_results():
    def function(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
        a[0].view(-1).add_(b.sum())
        (c * 2).add_(1)
        d.copy_(c)

    inputs = [torch.ones(2, 2) for _ in range(4)]
    assert written(make_fx(function)(*inputs)) == {0, 3}
