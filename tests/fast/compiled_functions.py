"""Functions of tensors as compiled graphs, rewritten by what is tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppo1_lightning.fast.compiler import compile_ahead
from ppo1_lightning.fast.tracing import trace

Results = Sequence[Tensor]


def traced(function: Callable[..., Any], *tensors: Tensor) -> GraphModule:
    with torch.no_grad():
        return trace(function, *tensors)


def targets(graph: GraphModule) -> set[Any]:
    return {node.target for node in graph.graph.nodes}


def compiled(
    function: Callable[..., Results], rewrite: Callable[[GraphModule], None], *tensors: Tensor
) -> Callable[[], list[Tensor]]:
    """Return a function of nothing as a compiled graph that has been rewritten."""
    results = [torch.full_like(result, torch.nan) for result in function(*tensors)]

    def write(*arguments: Tensor) -> tuple[()]:
        values = function(*arguments[: len(tensors)])
        for result, value in zip(arguments[len(tensors) :], values, strict=True):
            result.copy_(value)
        return ()

    everything = [*tensors, *results]
    graph = traced(write, *(tensor.clone() for tensor in everything))
    rewrite(graph)
    compiled = compile_ahead(graph, everything)
    assert compiled is not None
    run = compiled.bind(everything, ())

    def results_of_a_run() -> list[Tensor]:
        run(0, 1)
        return [result.clone() for result in results]

    return results_of_a_run


def compiled_together(
    functions: Sequence[Callable[..., Results]],
    rewrite: Callable[[GraphModule], None],
    tensors: Sequence[Sequence[Tensor]],
) -> Callable[[], list[list[Tensor]]]:
    """Return what calls each function with its tensors, in one graph: a compilation takes long."""
    counts = [len(f(*its)) for f, its in zip(functions, tensors, strict=True)]

    def everything(*flat: Tensor) -> Results:
        given = iter(flat)
        own = (islice(given, len(its)) for its in tensors)
        return [result for f, its in zip(functions, own, strict=True) for result in f(*its)]

    run = compiled(everything, rewrite, *chain.from_iterable(tensors))

    def results_of_each() -> list[list[Tensor]]:
        results = iter(run())
        return [list(islice(results, count)) for count in counts]

    return results_of_each
