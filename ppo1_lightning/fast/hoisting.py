"""Loop-invariant parts of a graph that is called for one row after the other, computed once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Graph, GraphModule, Node

from ppo1_lightning.fast.nodes import owner_of, written_into


def hoisted(graph: GraphModule, count: int) -> tuple[GraphModule, GraphModule]:
    """Split a traced graph into what its first ``count`` inputs alone decide, and the rest.

    Such as parameters in another precision. Where that is nothing but views of them, the first part
    hands them on as they are. What is written into, and whatever is read of it, is of the rest.

    Returns:
        From those inputs to a tuple of tensors; and the graph that takes them in their place.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    written = written_into(graph)
    early = dict.fromkeys(inputs[:count])  # an ordered set
    for node in graph.graph.nodes:
        if node.op == "call_function" and _follows(node, early, written):
            early[node] = None
    if all(owner_of(node) in inputs for node in early):
        early = dict.fromkeys(inputs[:count])
    crossing = [node for node in early if any(user not in early for user in node.users)]
    before, after = Graph(), Graph()
    copies = _copied(early, before, {})
    before.output(tuple(copies[node] for node in crossing))
    given = {node: after.placeholder(node.name) for node in crossing}
    for node, placeholder in given.items():
        placeholder.meta = node.meta
    _copied((node for node in graph.graph.nodes if node not in early), after, given)
    return GraphModule(graph, before), GraphModule(graph, after)


def _follows(node: Node, early: dict[Node, None], written: set[Node]) -> bool:
    """Tell whether nothing but these nodes decides what an operator returns, in whatever row."""
    sources = node.all_input_nodes
    is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return (
        bool(sources)
        and not is_random
        and all(source in early for source in sources)
        and written.isdisjoint(map(owner_of, (node, *sources)))
    )


def _copied(nodes: Iterable[Node], graph: Graph, copies: dict[Node, Node]) -> dict[Node, Node]:
    """Copy nodes into another graph, of whose nodes some are copies already."""
    copies = dict(copies)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return copies
