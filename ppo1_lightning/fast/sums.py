"""Sums of compiled graphs in double precision.

PyTorch's kernels add in blocks. A compiled graph adds one number after the other, in as many
partial sums as the machine's vectors are long, and rounds each time. Conjugate gradients multiply
that.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

FEW = 16
"""Terms up to which float32 does."""

_aten = torch.ops.aten
_SUMS = (_aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim)


def sum_in_double(graph: GraphModule) -> None:
    """Let `sum` and `mean` in a traced graph add float32 numbers in float64, and round once.

    Norms, variances and products stay as they are.
    """
    replaced = [_replace(node) for node in graph.graph.nodes if node.target in _SUMS]
    if any(replaced):
        graph.recompile()


def _replace(node: Node) -> bool:
    terms, result = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if terms is None or result is None or terms.dtype != torch.float32 or node.kwargs:
        return False
    if terms.numel() <= FEW * result.numel():
        return False
    graph = node.graph
    with graph.inserting_after(node):
        rounded = graph.call_function(_aten._to_copy.default, (node,), {"dtype": torch.float32})
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
    node.kwargs = {"dtype": torch.float64}
    node.meta, rounded.meta = {}, node.meta
    return True
