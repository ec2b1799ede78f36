"""What parameters alone decide is computed before the rows come, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compiled_functions import targets, traced
from torch import Tensor

from ppo1_lightning.fast.hoisting import hoisted

aten = torch.ops.aten


def in_half_precision(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    scaled = (weight * 0.5).bfloat16()
    result.copy_(row.bfloat16() @ scaled.t() + bias.bfloat16())
    return ()


def plain(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    result.copy_(torch.nn.functional.linear(row, weight, bias))
    return ()


def writing(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    result.copy_(row @ weight.exp().t())
    bias.add_(1)
    return ()


def random(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    result.copy_(row @ torch.rand_like(weight).t() + bias.exp())
    return ()


def tensors() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 5), torch.randn(3), torch.randn(2, 5), torch.zeros(2, 3)]


@pytest.mark.parametrize("function", [in_half_precision, plain, writing])
def test_both_parts_do_what_the_whole_does(function: Callable[..., tuple[()]]) -> None:
    whole, split = tensors(), tensors()
    graph = traced(function, *tensors())
    graph(*whole)
    before, after = hoisted(graph, 2)
    after(*before(*split[:2]), *split[2:])
    assert all(map(torch.equal, whole, split))


def test_conversions_of_parameters_come_first() -> None:
    before, after = hoisted(traced(in_half_precision, *tensors()), 2)
    assert {aten.mul.Tensor, aten._to_copy.default} <= targets(before)
    assert aten.mul.Tensor not in targets(after)
    converted = [n for n in after.graph.nodes if n.target is aten._to_copy.default]
    assert len(converted) == 1  # the row


@pytest.mark.parametrize("function", [plain, writing])
def test_views_and_what_is_written_into_stay(function: Callable[..., tuple[()]]) -> None:
    before, _ = hoisted(traced(function, *tensors()), 2)
    assert {node.op for node in before.graph.nodes} == {"placeholder", "output"}


def test_random_numbers_are_drawn_for_each_row() -> None:
    before, after = hoisted(traced(random, *tensors()), 2)
    assert aten.rand_like.default in targets(after)
    assert aten.exp.default in targets(before)
