"""Functions of tensors as flat graphs of operators, which run without modules and autograd.

On small networks Python's way to an operator costs more than the operator: a traced graph has the
derivative written out and calls one operator after the other; a compiled one fuses them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.compiler import compile_ahead
from ppo1_lightning.errors import ConfigurationError


class Graph:
    """A pure function of tensors whose layouts never change, traced when it is first called.

    Call it under `torch.inference_mode`, with tensors of the same shapes, strides and dtypes every
    time: a compiled graph does not look.

    Args:
        function: takes tensors and returns a tuple of tensors; what it does must not depend on the
            numbers in them. It may write to its arguments.
        compiled: compile the graph, which takes some seconds and, on the CPU, a C++ compiler.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *, compiled: bool) -> None:
        self._function, self._compiled = function, compiled
        self._graph: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        if self._graph is None:
            self._graph = self._make(*tensors)
        return self._graph(*tensors)

    def _make(self, *tensors: Tensor) -> Callable[..., Sequence[Tensor]]:
        with torch.inference_mode(False), torch.no_grad():  # inference mode knows no derivative
            copies = [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]
            if layout(*copies) != layout(*tensors):
                raise ConfigurationError(
                    "a tensor that the policy reads is a view with gaps or repetitions, expected "
                    "one of its own, such as tensor.contiguous()"
                )
            graph = make_fx(lambda *inputs: self._function(*inputs))(*copies)
            if not self._compiled:
                return graph
            if all(tensor.device.type == "cpu" for tensor in tensors):
                return compile_ahead(graph, copies)
        return torch.compile(graph, fullgraph=True, dynamic=False)


def layout(*tensors: Tensor) -> list[tuple[Any, ...]]:
    """Return what must stay the same from call to call of a `Graph`."""
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]


class PolicyCall:
    """A policy as a function of tensors: its parameters and buffers are arguments like others."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.parameters = dict(policy.named_parameters())
        self._buffers = [name for name, _ in policy.named_buffers()]

    def buffers(self) -> list[Tensor]:
        """Return the buffers as they are now: a policy may put new tensors in their place."""
        return [self.policy.get_buffer(name) for name in self._buffers]

    def __call__(self, parameters: Any, buffers: Any, observations: Tensor) -> Any:
        """Evaluate the policy with the given tensors in the place of its own."""
        tensors = dict(zip(self.parameters, parameters, strict=True))
        tensors |= dict(zip(self._buffers, buffers, strict=True))
        return functional_call(self.policy, tensors, (observations, None))


class PolicyGraph:
    """What a policy does with observations, as a `Graph` for batches like the first.

    Args:
        policy: its parameters may change in place, its buffers between two `refresh` calls.
        function: takes a policy ``(observations, state)`` and the tensors of the call, and returns
            a tuple of tensors.
        compiled: see `Graph`.
    """

    def __init__(
        self, policy: nn.Module, function: Callable[..., tuple[Tensor, ...]], *, compiled: bool
    ) -> None:
        self._call, self._function = PolicyCall(policy), function
        self._graph = Graph(self._run, compiled=compiled)
        self._layout: list[tuple[Any, ...]] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look up the policy's tensors."""
        parameters = [parameter.detach() for parameter in self._call.policy.parameters()]
        self._tensors = [*parameters, *self._call.buffers()]

    def fits(self, *tensors: Tensor) -> bool:
        """Tell whether the graph is for tensors like these, and like the policy's own now."""
        found = layout(*self._tensors, *tensors)
        if self._layout is None:
            self._layout = found
        return found == self._layout

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        return self._graph(*self._tensors, *tensors)

    def _run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        first, end = len(self._call.parameters), len(self._tensors)
        parameters, buffers, inputs = tensors[:first], tensors[first:end], tensors[end:]

        def policy(observations: Tensor, state: Any) -> Any:
            return self._call(parameters, buffers, observations)

        return self._function(policy, *inputs)
