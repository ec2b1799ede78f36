"""What several rewrites ask about a traced graph and its nodes."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node

_aten = torch.ops.aten


def value_of(node: Any) -> Tensor:
    """Return a tensor without memory that has the node's shape, strides and dtype."""
    return node.meta["val"]


def is_channels_last(node: Node) -> bool:
    """Tell whether a node's tensor is stored with channels last, without gaps."""
    return value_of(node).is_contiguous(memory_format=torch.channels_last)


def unconverted(image: Node) -> Node:
    """Return the uint8 pixels that an image of floating-point numbers is made of, or the image."""
    source = image
    while source.target is _aten._to_copy.default and value_of(source).is_floating_point():
        source = source.all_input_nodes[0]
    return source if value_of(source).dtype == torch.uint8 else image


def stride_of(strides: Any, *settings: Any) -> int | None:
    """Return the stride of a convolution of images without padding, dilation and groups.

    None for any other one. The arguments are those of `aten.convolution` from the strides on.
    """
    plain = list(settings) == [[0, 0], [1, 1], False, [0, 0], 1]
    return strides[0] if plain and len(strides) == 2 and strides[0] == strides[1] else None


def call(function: Any, source: Node, *arguments: Any, **options: Any) -> Node:
    """Insert a call that is described as `tracing.trace` does it."""
    arguments = source, *arguments
    node = source.graph.call_function(function, arguments, options)
    node.meta["val"] = function(*pytree.tree_map_only(Node, value_of, arguments), **options)
    return node


def getitem(several: Node, index: int) -> Node:
    """Insert the choice of one of an operator's results."""
    return call(operator.getitem, several, index)


def laid_out_as(node: Node, other: Node) -> Node:
    """Return a node with the strides of another one, which views in the graph rely on."""
    like = value_of(other)
    if value_of(node).stride() == like.stride():
        return node
    there = call(_aten.new_empty_strided.default, node, [*like.shape], [*like.stride()])
    return call(_aten.copy.default, there, node)


def owner_of(node: Node) -> Node:
    """Return the node in whose memory a node's tensor lies: itself, but for views."""
    if node.target is operator.getitem and _is_view(node.args[0]):
        return owner_of(node.args[0])  # type: ignore[arg-type]
    return owner_of(node.all_input_nodes[0]) if _is_view(node) else node


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.returns and schema.returns[0].alias_info is not None)


def written_into(graph: GraphModule) -> set[Node]:
    """Return the nodes whose memory a graph writes into, by whatever view."""
    found = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for i, argument in enumerate(schema.arguments if schema else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
                sources = given if isinstance(given, list | tuple) else [given]
                found |= {owner_of(source) for source in sources if isinstance(source, Node)}
    return found


def written(graph: GraphModule) -> set[int]:
    """Return which inputs a graph writes into."""
    found = written_into(graph)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return {i for i, node in enumerate(inputs) if node in found}
