"""What parameters alone decide is computed before the rows come, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compiled_functions import targets, traced
from torch import Tensor
from torch.fx import GraphModule

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


def into_a_temporary(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    sums = torch.zeros_like(weight[:2])
    sums.add_(row)
    result.copy_(sums[:, :3])
    return ()


def into_a_part(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    sums = weight.exp()
    sums[0].add_(row[0])
    result.copy_((sums * 2)[:2, :3])
    return ()


def after_a_read(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    scale = bias.clone()
    first = row[:, :3] * scale
    scale += 1
    result.copy_(first + row[:, :3] * scale)
    return ()


def into_one_of_several(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    first, _ = weight.split([2, 1])
    first.add_(row)
    result.copy_(weight.exp()[:2, :3])
    return ()


def by_an_argument(weight: Tensor, bias: Tensor, row: Tensor, result: Tensor) -> tuple[()]:
    torch.add(row[0, :3], 1, out=bias)
    result.copy_(bias.exp().expand(2, 3))
    return ()


FUNCTIONS = [
    in_half_precision,
    plain,
    writing,
    into_a_temporary,
    into_a_part,
    after_a_read,
    into_one_of_several,
    by_an_argument,
]


def tensors() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 5), torch.randn(3), torch.randn(4, 2, 5), torch.zeros(4, 2, 3)]


def split(function: Callable[..., tuple[()]]) -> tuple[GraphModule, GraphModule]:
    weight, bias, rows, results = tensors()
    return hoisted(traced(function, weight, bias, rows[0], results[0]), 2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_in_every_row_both_parts_do_what_the_whole_does(
    function: Callable[..., tuple[()]],
) -> None:
    weight, bias, rows, expected = tensors()
    for row, result in zip(rows, expected, strict=True):
        function(weight, bias, row, result)
    before, after = split(function)
    *fixed, rows, results = tensors()
    made = before(*fixed)
    for row, result in zip(rows, results, strict=True):
        after(*made, row, result)
    assert torch.equal(results, expected)
    assert all(map(torch.equal, fixed, (weight, bias)))


def test_conversions_of_parameters_come_first() -> None:
    before, after = split(in_half_precision)
    assert {aten.mul.Tensor, aten._to_copy.default} <= targets(before)
    assert aten.mul.Tensor not in targets(after)
    converted = [n for n in after.graph.nodes if n.target is aten._to_copy.default]
    assert len(converted) == 1  # the row


def test_views_alone_stay() -> None:
    before, _ = split(plain)
    assert {node.op for node in before.graph.nodes} == {"placeholder", "output"}


def test_random_numbers_are_drawn_for_each_row() -> None:
    before, after = split(random)
    assert aten.rand_like.default in targets(after)
    assert aten.exp.default in targets(before)
