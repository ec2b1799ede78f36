"""Functions of tensors as compiled graphs, rewritten by what is tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    run = compile_ahead(graph, everything).bind(everything, ())

    def results_of_a_run() -> list[Tensor]:
        run(0, 1)
        return [result.clone() for result in results]

    return results_of_a_run
