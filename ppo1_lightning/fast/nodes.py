"""What several rewrites ask about a traced graph and its nodes."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node


def value_of(node: Any) -> Tensor:
    """Return a tensor without memory that has the node's shape, strides and dtype."""
    return node.meta["val"]


def is_channels_last(node: Node) -> bool:
    """Tell whether a node's tensor is stored with channels last, without gaps."""
    return value_of(node).is_contiguous(memory_format=torch.channels_last)


def unconverted(image: Node) -> Node:
    """Return the uint8 pixels that an image of floating-point numbers is made of, or the image."""
    source = image
    while source.target is torch.ops.aten._to_copy.default and value_of(source).is_floating_point():
        source = source.all_input_nodes[0]
    return source if value_of(source).dtype == torch.uint8 else image


def call(function: Any, source: Node, *arguments: Any, **options: Any) -> Node:
    """Insert a call that is described as `tracing.trace` does it."""
    arguments = source, *arguments
    node = source.graph.call_function(function, arguments, options)
    node.meta["val"] = function(*pytree.tree_map_only(Node, value_of, arguments), **options)
    return node


def getitem(several: Node, index: int) -> Node:
    """Insert the choice of one of an operator's results."""
    return call(operator.getitem, several, index)


def is_view(node: Node) -> bool:
    """Tell whether a node's tensor lies in another one's memory."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.returns and schema.returns[0].alias_info is not None)


def written(graph: GraphModule) -> set[int]:
    """Return which inputs a graph writes into, as they are or as a view."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    found = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for source, argument in zip(node.args, schema.arguments if schema else (), strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                sources = source if isinstance(source, list | tuple) else [source]
                found |= {_owner(tensor) for tensor in sources}
    return {i for i, node in enumerate(inputs) if node in found}


def _owner(node: Any) -> Any:
    """Return what a tensor of a graph is a view of, or itself."""
    return _owner(node.args[0]) if is_view(node) else node
