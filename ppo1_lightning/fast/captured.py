"""Operators on a CUDA device as one graph of its driver, launched at once instead of one by one.

A step of a small network is dozens of kernels of some microseconds each, less than it takes to ask
for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ppo1_lightning.fast.compiler import Run

KEPT = 2
"""Graphs captured for different fixed tensors: those of a run, and copies to compare with."""


class CapturedGraph:
    """A function of tensors of unchanging layouts, captured for those that stay where they are.

    Args:
        function: does the same operations whatever the numbers, on one CUDA device alone.
        written: which of its arguments it writes its results into, each as a whole; the others it
            only reads, but for the fixed ones.
    """

    def __init__(self, function: Callable[..., Any], written: Collection[int]) -> None:
        self._function, self._written = function, written
        self._captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}

    def bind(self, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run:
        """Return the graph for ``fixed`` and one row each of ``rows``, in this order."""
        place = tuple(tensor.data_ptr() for tensor in fixed)
        if place not in self._captured:
            for oldest in list(self._captured)[: 1 - KEPT]:
                del self._captured[oldest]
            self._captured[place] = self._capture(fixed, [tensor[0] for tensor in rows])
        graph, slots = self._captured[place]
        given, results = [], []
        for argument, pair in enumerate(zip(slots, rows, strict=True), start=len(fixed)):
            (results if argument in self._written else given).append(pair)

        def run(first: int, end: int) -> None:
            for k in range(first, end):
                for slot, tensor in given:
                    slot.copy_(tensor[k])
                graph.replay()
                for slot, tensor in results:
                    tensor[k].copy_(slot)

        run.kept_alive = fixed  # type: ignore[attr-defined]  # the graph has their addresses
        return run

    def _capture(
        self, fixed: Sequence[Tensor], row: Sequence[Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        slots = [tensor.clone() for tensor in row]
        # The first calls make libraries' workspaces and compile kernels, which no graph can hold.
        device = fixed[0].device
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._function(*(tensor.clone() for tensor in (*fixed, *slots)))
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._function(*fixed, *slots)
        except Exception:  # such as a copy from the host: where it fails, the stream stays its own
            torch.cuda.set_stream(current)
            raise
        return graph, slots
