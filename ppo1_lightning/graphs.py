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


def separate_parameters(
    policy: nn.Module, observations: Tensor
) -> tuple[list[str], list[str]] | None:
    """Return the names of the parameters that choose actions, and of those that estimate values.

    None where a parameter does both, or neither: then they cannot be taken apart.
    """
    names, tensors = zip(*policy.named_parameters(), strict=True)

    def used_by(output: Tensor) -> list[str]:
        gradients = torch.autograd.grad(output.sum(), tensors, allow_unused=True, retain_graph=True)
        pairs = zip(names, gradients, strict=True)
        return [name for name, gradient in pairs if gradient is not None]

    with torch.inference_mode(False), torch.enable_grad():
        parameters, values, _ = policy(observations.clone(), None)
        if not (parameters.requires_grad and values.requires_grad):
            return None
        acting, valuing = used_by(parameters), used_by(values)
    return (acting, valuing) if sorted(acting + valuing) == sorted(names) else None


class PolicyGraph:
    """What a policy does with observations, as a `Graph` for batches like the first.

    Args:
        policy: its parameters may change in place, its buffers between two `bind` calls.
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

    def bind(self, *examples: Tensor) -> Callable[..., Sequence[Tensor]] | None:
        """Return the graph with the policy's tensors as they are now, for inputs like these.

        None where they, or the policy's own, are not laid out as at the first time.
        """
        parameters = [parameter.detach() for parameter in self._call.policy.parameters()]
        tensors = [*parameters, *self._call.buffers()]
        found = layout(*tensors, *examples)
        if self._layout is None:
            self._layout = found
        if found != self._layout:
            return None
        graph = self._graph
        return lambda *inputs: graph(*tensors, *inputs)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        bound = self.bind(*inputs)
        if bound is None:
            raise RuntimeError("the tensors are not laid out as those that the graph is for")
        return bound(*inputs)

    def _run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        first = len(self._call.parameters)
        end = first + len(self._call.buffers())
        parameters, buffers, inputs = tensors[:first], tensors[first:end], tensors[end:]

        def policy(observations: Tensor, state: Any) -> Any:
            return self._call(parameters, buffers, observations)

        return self._function(policy, *inputs)
