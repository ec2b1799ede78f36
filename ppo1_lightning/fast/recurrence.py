"""A memory's rows in graphs as one operator, forward and backward: see ``recurrence.h``.

Unrolled, a graph would have dozens of nodes for every row of a unit. On the CPU, in float32.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo1_lightning.fast import native
from ppo1_lightning.policies import memory

_log = logging.getLogger(__name__)

_operators = torch.library.Library("ppo1_lightning", "FRAGMENT")
_operators.define(
    "recurrence(Tensor gates, Tensor weight, Tensor bias, Tensor state, Tensor starts)"
    " -> (Tensor, Tensor)",
    tags=torch.Tag.needs_exact_strides,
)
_operators.define(
    "recurrence_backward(Tensor gradient, Tensor states, Tensor activations, Tensor weight,"
    " Tensor state, Tensor starts) -> (Tensor, Tensor)",
    tags=torch.Tag.needs_exact_strides,
)
FORWARD = torch.ops.ppo1_lightning.recurrence.default
"""What `memory.unrolled` computes, and activations ``[L, U, 4 H]`` for its gradient. All tensors
are contiguous; what kind of memory it is follows from their shapes."""

BACKWARD = torch.ops.ppo1_lightning.recurrence_backward.default
"""From the gradient of the states to those of the gates and of the first state."""

C_FUNCTIONS = {
    FORWARD: [
        "AOTITorchError aoti_torch_cpu_recurrence("
        "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle *, AtenTensorHandle *)"
    ],
    BACKWARD: [
        "AOTITorchError aoti_torch_cpu_recurrence_backward("
        "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle *, AtenTensorHandle *)"
    ],
}
"""Declarations of what a compiled graph calls for each operator."""


@torch.library.register_fake("ppo1_lightning::recurrence", lib=_operators)
def _forward_results(
    gates: Tensor, weight: Tensor, bias: Tensor, state: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return memory for states and activations."""
    states = gates.new_empty(*starts.shape, state.shape[-1])
    return states, gates.new_empty(*starts.shape, 4 * weight.shape[-1])


@torch.library.register_fake("ppo1_lightning::recurrence_backward", lib=_operators)
def _backward_results(
    gradient: Tensor,
    states: Tensor,
    activations: Tensor,
    weight: Tensor,
    state: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return memory for the gradients of the gates and of the first state."""
    of_gates = gradient.new_empty(*starts.shape, len(weight))
    return of_gates, gradient.new_empty(state.shape)


@torch.library.impl("ppo1_lightning::recurrence", "CPU", lib=_operators)
def _(*given: Tensor) -> tuple[Tensor, Tensor]:
    results, (_, weight, *_, starts) = _forward_results(*given), given
    _call("recurrence_forward", weight, starts, *given, *results)
    return results


@torch.library.impl("ppo1_lightning::recurrence_backward", "CPU", lib=_operators)
def _(*given: Tensor) -> tuple[Tensor, Tensor]:
    results, (*_, weight, _, starts) = _backward_results(*given), given
    _call("recurrence_backward", weight, starts, *given, *results)
    return results


def _call(name: str, weight: Tensor, starts: Tensor, *tensors: Tensor) -> None:
    """Call a function of ``recurrence.cpp``, whose sizes are the shapes of weight and starts."""
    sizes = *starts.shape, weight.shape[-1], len(weight) == 3 * weight.shape[-1]
    kinds = [ctypes.c_int64] * 3 + [ctypes.c_bool] + [ctypes.c_void_p] * len(tensors)
    pointers = [tensor.data_ptr() for tensor in tensors]
    library = _library()
    assert library is not None
    library[name](*(kind(value) for kind, value in zip(kinds, (*sizes, *pointers), strict=True)))


class _Recurrence(torch.autograd.Function):
    """The operator with its derivative; weights and bias get theirs from all rows at once."""

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return FORWARD(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        (_, weight, _, state, starts), (states, activations) = inputs, output
        ctx.mark_non_differentiable(activations)
        ctx.save_for_backward(weight, state, starts, states, activations)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:  # type: ignore[override]
        weight, state, starts, states, activations = ctx.saved_tensors
        hidden = weight.shape[-1]
        given = gradient.contiguous(), states, activations, weight, state, starts
        of_gates, of_state = BACKWARD(*given)
        of_hidden = of_gates
        if len(weight) == 3 * hidden:  # the reset gate stands between the state and the candidate
            reset, candidate = activations[..., :hidden], of_gates[..., 2 * hidden :]
            of_hidden = torch.cat([of_gates[..., : 2 * hidden], candidate * reset], -1)
        before = torch.cat([state[None], states[:-1]])[..., :hidden]
        before = before.masked_fill(starts.unsqueeze(-1), 0.0).flatten(0, 1)
        rows = of_hidden.flatten(0, 1)
        return of_gates, rows.t() @ before, rows.sum(0), of_state, None


def _scan(
    kind: str, gates: Tensor, weight: Tensor, bias: Tensor, state: Tensor, starts: Tensor
) -> Tensor:
    """Do as `memory.unrolled` does, by the operator where it exists."""
    tensors = gates, weight, bias, state, starts
    fits = gates.dtype == state.dtype == torch.float32 and gates.device.type == "cpu"
    if len(gates) == 1 or not fits or _library() is None:
        return memory.unrolled(kind, *tensors)
    states, _ = _Recurrence.apply(*(tensor.contiguous() for tensor in tensors))  # type: ignore[misc]
    return states


@contextmanager
def as_an_operator() -> Iterator[None]:
    """Let memories go through their rows by the operator, for what is traced meanwhile."""
    before, memory.scan = memory.scan, _scan
    try:
        yield
    finally:
        memory.scan = before


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return ``recurrence.cpp``, made if need be; None where that is not possible."""
    try:
        return native.load_operators(Path(__file__).with_suffix(".cpp"))
    except (OSError, RuntimeError) as error:
        _log.warning("memory is unrolled: %s", error)
        return None
