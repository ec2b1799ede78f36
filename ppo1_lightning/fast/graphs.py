"""Functions of tensors as flat graphs of operators, which run without modules and autograd.

On small networks Python's way to an operator costs more than the operator: a traced graph has the
derivative written out and calls one operator after the other; a compiled one fuses them too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.fast.compiler import Run, compile_ahead
from ppo1_lightning.fast.winograd import replace_convolutions


class Graph:
    """A function that writes into tensors whose layouts never change, traced for its first ones.

    Args:
        function: takes tensors and returns nothing: results are written into its arguments. What
            it does must not depend on the numbers in them.
        policy: that the function calls; None where it calls none.
        compiled: compile the graph, which takes some seconds and, on the CPU, a C++ compiler.
    """

    def __init__(
        self, function: Callable[..., None], *, policy: PolicyCall | None = None, compiled: bool
    ) -> None:
        self._function, self._policy, self._compiled = function, policy, compiled
        self._layout: list[tuple[Any, ...]] | None = None
        self._bind: Callable[[Sequence[Tensor], Sequence[Tensor]], Run] | None = None

    def bind(self, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run | None:
        """Return the graph as ``run(first, end)``, to be called under `torch.inference_mode`.

        It calls the function with ``(*fixed, *(tensor[k] for tensor in rows))`` for every k from
        ``first`` to ``end - 1``. None where the tensors are not laid out as the first ones.
        """
        found = [*layout(*fixed), *((t.shape[1:], t.stride()[1:], t.dtype) for t in rows)]
        if self._bind is None:
            self._bind, self._layout = self._make(*fixed, *(tensor[0] for tensor in rows)), found
        return self._bind(fixed, rows) if found == self._layout else None

    def _make(self, *tensors: Tensor) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Run]:
        with torch.inference_mode(False), torch.no_grad():  # inference mode knows no derivative
            copies = [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]
            if layout(*copies) != layout(*tensors):
                raise ConfigurationError(
                    "a tensor that the policy reads is a view with gaps or repetitions, expected "
                    "one of its own, such as tensor.contiguous()"
                )
            graph = make_fx(lambda *inputs: self._call(*inputs))(*copies)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            if self._policy is not None:
                self._policy.check_constants(graph)
            if not self._compiled:
                return functools.partial(_in_python, graph)
            if all(tensor.device.type == "cpu" for tensor in tensors):
                replace_convolutions(graph)
                return compile_ahead(graph, copies).bind
        compiled = torch.compile(graph, fullgraph=True, dynamic=False)
        if all(tensor.device.type == "cuda" for tensor in tensors):
            return CapturedGraph(compiled).bind
        return functools.partial(_in_python, compiled)

    def _call(self, *tensors: Tensor) -> tuple[()]:
        self._function(*tensors)
        return ()


def _in_python(graph: Callable[..., Any], fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run:
    def run(first: int, end: int) -> None:
        for k in range(first, end):
            graph(*fixed, *(tensor[k] for tensor in rows))

    return run


class CapturedGraph:
    """A graph on a CUDA device, recorded as one launch that goes from row to row by itself.

    Not run by its authors yet, for want of a device; `GraphUpdate.prepare` compares its gradient
    with the eager one before it is used.

    Args:
        graph: reads its row tensors only; what it writes to is among the fixed ones.
    """

    def __init__(self, graph: Callable[..., Any]) -> None:
        self._graph = graph
        self._addresses: list[Any] = []

    def bind(self, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run:
        """Return the graph for these tensors; the rows are copied, the last ones bound count."""
        addresses = [*(tensor.data_ptr() for tensor in fixed), *(len(tensor) for tensor in rows)]
        if addresses != self._addresses:
            self._record(fixed, rows)
            self._addresses = addresses
        for own, given in zip(self._rows, rows, strict=True):
            own.copy_(given)

        def run(first: int, end: int) -> None:
            self._row.fill_(first)
            for _ in range(first, end):
                self._recording.replay()

        return run

    def _record(self, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        self._rows = [tensor.clone() for tensor in rows]
        self._row = torch.zeros(1, dtype=torch.int64, device=fixed[0].device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiled and warmed up before it is recorded
            for _ in range(3):
                self._graph(*(tensor.clone() for tensor in fixed), *(t[0] for t in self._rows))
        torch.cuda.current_stream().wait_stream(stream)
        self._recording, self._fixed = torch.cuda.CUDAGraph(), fixed
        with torch.cuda.graph(self._recording):
            self._graph(*fixed, *(t.index_select(0, self._row).squeeze(0) for t in self._rows))
            self._row.add_(1)


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

    def check_constants(self, graph: nn.Module) -> None:
        """Refuse a graph that has frozen a tensor of the policy.

        Raises:
            ConfigurationError: the policy reads a tensor that is neither parameter nor buffer.
        """
        frozen = {constant.data_ptr() for constant in graph.state_dict().values()}
        for module in self.policy.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.numel() and value.data_ptr() in frozen:
                    raise ConfigurationError(
                        f"the policy reads {type(module).__name__}.{name}, a tensor, expected a "
                        "parameter or a buffer (register_buffer)"
                    )

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
    """What a policy does with observations, as a `Graph`.

    Args:
        policy: its parameters may change in place, its buffers between two `bind` calls.
        function: takes a policy ``(observations, state)`` and one row of each tensor, and writes
            its results into them.
        compiled: see `Graph`.
    """

    def __init__(self, policy: nn.Module, function: Callable[..., None], *, compiled: bool) -> None:
        self._call, self._function = PolicyCall(policy), function
        self._graph = Graph(self._run, policy=self._call, compiled=compiled)

    def bind(self, *rows: Tensor) -> Run | None:
        """Return the graph with the policy's tensors as they are now, see `Graph.bind`."""
        parameters = [parameter.detach() for parameter in self._call.policy.parameters()]
        buffers = [buffer.detach() for buffer in self._call.buffers()]
        return self._graph.bind([*parameters, *buffers], rows)

    def _run(self, *tensors: Tensor) -> None:
        first = len(self._call.parameters)
        end = first + len(self._call.buffers())
        parameters, buffers, inputs = tensors[:first], tensors[first:end], tensors[end:]

        def policy(observations: Tensor, state: Any) -> Any:
            return self._call(parameters, buffers, observations)

        self._function(policy, *inputs)
