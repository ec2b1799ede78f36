"""Products of single rows as sums: the same numbers, and no other product touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.fast.products import LARGEST, replace_products_of_a_row

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "replaced"),
    [
        (1, 17, 64, True),
        (1, 64, 1, True),
        (1, 1, 3, True),
        (1, 64, LARGEST // 64, True),
        (1, 65, LARGEST // 64, False),
        (2, 3, 4, False),
    ],
)
def test_a_row_times_a_matrix(
    rows: int, inputs: int, outputs: int, replaced: bool, bias: bool
) -> None:
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    row = torch.randn(rows, inputs)

    def function(row: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(row, weight, layer.bias)

    with torch.no_grad():
        graph = make_fx(function)(row, layer.weight)
        replace_products_of_a_row(graph)
        assert PRODUCTS.isdisjoint(node.target for node in graph.graph.nodes) == replaced
        torch.testing.assert_close(graph(row, layer.weight), layer(row))


def test_products_in_other_dtypes_stay() -> None:
    tensors = torch.randn(1, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    graph = make_fx(torch.mm)(*tensors)
    replace_products_of_a_row(graph)
    assert not PRODUCTS.isdisjoint(node.target for node in graph.graph.nodes)
