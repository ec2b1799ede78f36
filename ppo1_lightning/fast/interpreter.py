"""A traced graph as one call: TorchScript's interpreter goes from operator to operator, not Python.

It needs no compiler, and lets go of Python's lock meanwhile. PyTorch calls TorchScript deprecated,
and has nothing else of the kind; where it is gone, or differs in a bit, Python calls the operators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def interpreted(graph: GraphModule, example: Sequence[Tensor]) -> Callable[..., Any] | None:
    """Return what does the same as a graph that writes into its arguments, to the bit.

    Args:
        graph: on the CPU.
        example: arguments, which stay as they are.

    Returns:
        None where TorchScript has another result for the example, or none.
    """
    first, second, third = ([_copy(tensor) for tensor in example] for _ in range(3))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = _script(graph, first)
        with unoptimized():
            script(*second)
    except Exception:  # of whatever kind: nobody mends TorchScript any more
        return None
    graph(*third)
    return script if all(map(_is_same, second, third)) else None


def _script(graph: GraphModule, example: Sequence[Tensor]) -> torch.jit.ScriptFunction:
    """Return a graph as TorchScript's. `torch.jit.trace` would keep it for the process's life."""
    names = [f"input_{i}" for i in range(len(example))]
    traced, *_ = torch._C._create_graph_by_tracing(
        lambda *tensors: graph(*tensors), tuple(example), lambda _: "", True, False, None, names
    )
    return torch._C.CompilationUnit().create_function("graph", traced)


def unoptimized() -> AbstractContextManager[None]:
    """Return the context in which TorchScript runs a graph as it is, on this thread."""
    optimized_execution = getattr(torch.jit, "optimized_execution", None)
    return optimized_execution(False) if optimized_execution else nullcontext()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.preserve_format)


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    bits = _BITS[tensor.itemsize]
    return torch.equal(tensor.view(bits), other.view(bits))
