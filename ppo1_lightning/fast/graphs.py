"""Functions of tensors as flat graphs of operators, which run without modules and autograd.

On small networks Python's way to an operator costs more than the operator: a traced graph has the
derivative written out, and an interpreter calls one operator after the other; a compiled one fuses
them too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.fast.captured import CapturedGraph
from ppo1_lightning.fast.compiler import Compiled, Run, compile_ahead, is_kept
from ppo1_lightning.fast.hoisting import hoisted
from ppo1_lightning.fast.interpreter import interpreted, unoptimized
from ppo1_lightning.fast.native import cache_folder, own_caches
from ppo1_lightning.fast.nodes import value_of, written
from ppo1_lightning.fast.products import replace_products_of_a_row
from ppo1_lightning.fast.recurrence import as_an_operator
from ppo1_lightning.fast.space_to_depth import read_in_cells
from ppo1_lightning.fast.sums import sum_in_double
from ppo1_lightning.fast.tracing import trace
from ppo1_lightning.fast.weight_gradient import replace_weight_gradients
from ppo1_lightning.fast.winograd import replace_convolutions

_Bind = Callable[[Sequence[Tensor], Sequence[Tensor]], Run]


class LayoutError(RuntimeError):
    """A graph was given tensors that it was not made for."""


class Graph:
    """A function that writes into tensors whose layouts never change, traced for its first ones.

    Args:
        function: takes tensors and returns nothing: results are written into its arguments. What
            it does must not depend on the numbers in them.
        module: that the function calls; None where it calls none.
        compiled: compile the graph too, see `compile`; "kept" is for the CPU alone.
        sums_in_double: where it is compiled for the CPU, see `sums`.
        hoists: where it is compiled for the CPU, what the fixed tensors alone decide is computed
            when they are bound, and so not for each row. They are not to change before the next.

    Attributes:
        needs_python: whether a call of what `bind` has returned keeps other threads waiting.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *,
        module: ModuleCall | None = None,
        compiled: Compiled,
        sums_in_double: bool = False,
        hoists: bool = False,
    ) -> None:
        self._function, self._module, self._compiled = function, module, compiled
        self._sums_in_double, self._hoists = sums_in_double, hoists
        self._traced: GraphModule | None = None
        self._layout: list[tuple[Any, ...]] = []
        self._num_fixed = 0
        self._devices: set[str] = set()
        self._bind: _Bind | None = None
        self.needs_python = not compiled

    def bind(self, fixed: Sequence[Tensor], rows: Sequence[Tensor]) -> Run:
        """Return the graph as ``run(first, end)``, to be called under `torch.inference_mode`.

        It calls the function with ``(*fixed, *(tensor[k] for tensor in rows))`` for every k from
        ``first`` to ``end - 1``.

        Raises:
            LayoutError: the tensors are not laid out as the first ones.
        """
        found = [*layout(*fixed), *((t.shape[1:], t.stride()[1:], t.dtype) for t in rows)]
        if self._bind is None:
            example = [*fixed, *(tensor[0] for tensor in rows)]
            self._traced = self._trace(*example)
            self._layout = found
            self._devices = {tensor.device.type for tensor in example}
            self._num_fixed = len(fixed)
            code = self._as_machine_code() if self._compiled else None
            self._bind = code or self._as_operators(example)
        if found != self._layout:
            raise LayoutError(
                "shapes, strides or dtypes of the minibatches, the observations or a buffer have "
                "changed since the graph was made; use compile=false"
            )
        return self._bind(fixed, rows)

    def compile(self) -> Graph:
        """Return what was traced as a compiled graph, to be bound anew; as it is before a trace.

        It takes some seconds and, on the CPU, a C++ compiler, which `bind`'s result waits for.
        """
        other = copy.copy(self)
        if self._traced is not None:
            other._compiled, other.needs_python = True, False
            other._bind = other._as_machine_code()
        return other

    def is_kept(self) -> bool:
        """Whether an earlier run has left this graph compiled; True before a trace."""
        if self._traced is None:
            return True
        if self._devices != {"cpu"} or not any(cache_folder().glob("*.zip")):
            return False  # without asking, for which our own operators may be compiled
        with _as_traced():
            graph, likewise, _ = self._for_the_compiler()
            return is_kept(graph, likewise)

    def _trace(self, *tensors: Tensor) -> GraphModule:
        with torch.inference_mode(False), torch.no_grad():  # inference mode knows no derivative
            copies = [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]
            if layout(*copies) != layout(*tensors):
                raise ConfigurationError(
                    "a tensor that the policy reads is a view with gaps or repetitions, expected "
                    "one of its own, such as tensor.contiguous()"
                )
            with as_an_operator():
                graph = trace(lambda *inputs: self._call(*inputs), *copies)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            if self._module is not None:
                self._module.check_constants(graph)
        return graph

    def _as_operators(self, example: Sequence[Tensor]) -> _Bind:
        assert self._traced is not None
        if self._devices == {"cpu"}:
            with torch.inference_mode(False), torch.no_grad(), _as_traced():
                script = interpreted(self._traced, example)
            self.needs_python = script is None
            return functools.partial(_one_after_the_other, script or self._traced)
        return self._by_python(self._traced)

    def _by_python(self, function: Callable[..., Any]) -> _Bind:
        """Let Python call what was traced, or what was made of it; on a GPU it is captured."""
        assert self._traced is not None
        constants = self._traced.state_dict()  # which are copied from the host
        if self._devices == {"cuda"} and not constants:
            return CapturedGraph(function, written(self._traced)).bind
        return functools.partial(_one_after_the_other, function)

    def _as_machine_code(self) -> _Bind | None:
        own_caches()
        if self._devices == {"cpu"}:
            if_kept = self._compiled == "kept"
            with torch.inference_mode(False), torch.no_grad(), _as_traced():
                graph, likewise, before = self._for_the_compiler()
                code = compile_ahead(graph, likewise, if_kept=if_kept)
            return code and functools.partial(_after, before, layout(*likewise), code.bind)
        assert self._traced is not None
        return self._by_python(torch.compile(self._traced, fullgraph=True, dynamic=False))

    def _for_the_compiler(self) -> tuple[GraphModule, list[Tensor], Callable[..., Any]]:
        """Return the graph with our own operators, tensors like its arguments, and what turns the
        fixed ones into the first of them."""
        graph = copy.deepcopy(self._traced)
        assert graph is not None
        read_in_cells(graph)
        replace_weight_gradients(graph)
        replace_convolutions(graph)
        replace_products_of_a_row(graph)
        if self._sums_in_double:
            sum_in_double(graph)
        before: Callable[..., Any] = lambda *fixed: fixed  # noqa: E731
        if self._hoists:
            before, graph = hoisted(graph, self._num_fixed)
        inputs = [value_of(node) for node in graph.graph.find_nodes(op="placeholder")]
        with torch.inference_mode(False):
            likewise = [
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).zero_()
                for value in inputs
            ]
        return graph, likewise, before

    def _call(self, *tensors: Tensor) -> tuple[()]:
        self._function(*tensors)
        return ()


def _as_traced() -> AbstractContextManager[Any]:
    """Return the context in which a graph's operators are what they were when it was traced.

    They know their precision: autocast is in them already.
    """
    active = torch.is_autocast_enabled("cpu")
    return torch.autocast("cpu", enabled=False) if active else nullcontext()


def _after(
    before: Callable[..., Sequence[Tensor]],
    expected: list[tuple[Any, ...]],
    bind: _Bind,
    fixed: Sequence[Tensor],
    rows: Sequence[Tensor],
) -> Run:
    """Bind what is made of the fixed tensors, and look at it: compiled code looks at nothing."""
    with _as_traced():
        made = before(*fixed)
    if layout(*made) != expected[: len(made)]:
        raise LayoutError("a graph's parameters are laid out anew; use compile=false")
    return bind(made, rows)


def _one_after_the_other(
    graph: Callable[..., Any], fixed: Sequence[Tensor], rows: Sequence[Tensor]
) -> Run:
    def run(first: int, end: int) -> None:
        with unoptimized(), _as_traced():
            for k in range(first, end):
                graph(*fixed, *(tensor[k] for tensor in rows))

    return run


def layout(*tensors: Tensor) -> list[tuple[Any, ...]]:
    """Return what must stay the same from call to call of a `Graph`."""
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]


class ModuleCall:
    """A call of a module as a function of tensors: its parameters and buffers are arguments too.

    Args:
        module: what is called. What it reads in its parts, parameters or buffers, is an argument.
        learning: which of its parameters are listed apart from the rest.
    """

    def __init__(self, module: nn.Module, learning: Sequence[Tensor]) -> None:
        self.module = module
        listed = set(map(id, learning))
        named = dict(module.named_parameters())
        self.learning = {name: p for name, p in named.items() if id(p) in listed}
        rest = [name for name in named if name not in self.learning]
        rest += [name for name, _ in module.named_buffers()]
        self._others = {name: _place(module, name) for name in rest}

    @property
    def num_others(self) -> int:
        """How many tensors `others` returns, which is not to be called where it is traced."""
        return len(self._others)

    def others(self) -> list[Tensor]:
        """Return the rest as it is now, of the parts that it was made with (see `Reads`)."""
        return [kept[name].detach() for kept, name in self._others.values()]

    def check_constants(self, graph: GraphModule) -> None:
        """Refuse a graph that has frozen a tensor from elsewhere; numbers in the code are copied.

        Raises:
            ConfigurationError: the module reads a tensor that is neither parameter nor buffer.
        """
        copied = torch.ops.aten.lift_fresh_copy.default
        for node in graph.graph.find_nodes(op="get_attr"):
            if any(user.target is not copied for user in node.users):
                name = self._name_of(getattr(graph, str(node.target)))
                raise ConfigurationError(
                    f"the policy reads {name}, a tensor, expected a parameter or a buffer "
                    "(register_buffer)"
                )

    def _name_of(self, tensor: Tensor) -> str:
        """Return where a module has a tensor among its attributes, or within one."""
        for module in self.module.modules():
            for name, value in vars(module).items():
                inside = [value, *(value if isinstance(value, list | tuple) else ())]
                inside += value.values() if isinstance(value, dict) else ()
                if any(isinstance(t, Tensor) and t.data_ptr() == tensor.data_ptr() for t in inside):
                    return f"{type(module).__name__}.{name}"
        return "something of its own"

    def __call__(
        self, learning: Sequence[Tensor], others: Sequence[Tensor], *inputs: Tensor | None
    ) -> Any:
        """Call the module with the given tensors in the place of its own."""
        tensors = dict(zip(self.learning, learning, strict=True))
        tensors |= dict(zip(self._others, others, strict=True))
        return functional_call(self.module, tensors, inputs)


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Return the dict in which a part of a module keeps a tensor, and the tensor's name there."""
    path, _, own = name.rpartition(".")
    part = module.get_submodule(path)
    return (part._parameters if own in part._parameters else part._buffers), own
