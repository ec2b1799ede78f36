"""Products of single rows in compiled graphs as sums that are fused with what is around them.

A policy that acts in one environment takes products so small that a call of a BLAS costs more than
they do.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from ppo1_lightning.fast.nodes import value_of

LARGEST = 4096
"""Multiplications up to which that pays."""

_aten = torch.ops.aten


def replace_products_of_a_row(graph: GraphModule) -> None:
    """Put sums in the place of the small products of a traced graph that have a single row."""
    replaced = [_replace(node) for node in graph.graph.nodes]
    if any(replaced):
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _replace(node: Node) -> bool:
    if node.target is _aten.addmm.default and not node.kwargs:
        bias, rows, matrix = node.args
    elif node.target is _aten.mm.default:
        bias, (rows, matrix) = None, node.args
    else:
        return False
    row, weight = value_of(rows), value_of(matrix)
    if len(row) != 1 or weight.numel() > LARGEST or weight.dtype != torch.float32:
        return False
    graph = node.graph
    with graph.inserting_before(node):
        # [1, K] * [M, K]: the rows of a linear layer's weight are contiguous
        columns = graph.call_function(_aten.permute.default, (matrix, [1, 0]))
        terms = graph.call_function(_aten.mul.Tensor, (rows, columns))
        sums = graph.call_function(_aten.sum.dim_IntList, (terms, [-1]))
        result = graph.call_function(_aten.unsqueeze.default, (sums, 0))
        if bias is not None:
            result = graph.call_function(_aten.add.Tensor, (result, bias))
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)
    return True
