"""Convolutions of compiled graphs by Winograd's minimal filtering: see ``winograd.cpp``.

For kernels two or three strides wide, as those of the Nature CNN, it takes half of the
multiplications of a direct convolution or fewer, and rounds no more. On the CPU, in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppo1_lightning.fast import native
from ppo1_lightning.fast.nodes import is_channels_last, stride_of, unconverted, value_of

_aten = torch.ops.aten
_operators = torch.library.Library("ppo1_lightning", "DEF")
_operators.define(
    "winograd_convolution(Tensor input, Tensor weight, Tensor bias, int stride, bool relu)"
    " -> Tensor",
    tags=torch.Tag.needs_exact_strides,
)
_operators.define(
    "winograd_convolution_backward(Tensor gradient, Tensor output, Tensor input, Tensor weight,"
    " int stride, bool relu, bool of_input) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.needs_exact_strides,
)
FORWARD = torch.ops.ppo1_lightning.winograd_convolution.default
"""``[B, C, H, W]`` in uint8 or, with channels last, in float32 to ``[B, K, h, w]`` with channels
last. It exists in graphs that are compiled ahead of time only, and so does its gradient."""

BACKWARD = torch.ops.ppo1_lightning.winograd_convolution_backward.default
"""From the gradient of the output and the output, which tells where a ReLU let pass, to those of
input, weight and bias; that of the input is empty where it is not asked for."""

C_FUNCTIONS = {
    FORWARD: [
        "AOTITorchError aoti_torch_cpu_winograd_convolution("
        "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, int64_t, bool, AtenTensorHandle *)"
    ],
    BACKWARD: [
        "AOTITorchError aoti_torch_cpu_winograd_convolution_backward("
        "AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, int64_t, bool, "
        "bool, AtenTensorHandle *, AtenTensorHandle *, AtenTensorHandle *)"
    ],
}
"""Declarations of what a compiled graph calls for each operator."""


@torch.library.register_fake("ppo1_lightning::winograd_convolution", lib=_operators)
def _(input: Tensor, weight: Tensor, bias: Tensor, stride: int, relu: bool) -> Tensor:
    height, width = _output_size(input, weight, stride)
    output = weight.new_empty(len(input), len(weight), height, width)
    return output.contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("ppo1_lightning::winograd_convolution_backward", lib=_operators)
def _(
    gradient: Tensor,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: int,
    relu: bool,
    of_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    of_inputs = torch.empty_like(input) if of_input else weight.new_empty(0)
    return of_inputs, torch.empty_like(weight), weight.new_empty(len(weight))


def _output_size(image: Tensor, weight: Tensor, stride: int) -> list[int]:
    return [(side - weight.shape[-1]) // stride + 1 for side in image.shape[2:]]


def replace_convolutions(graph: GraphModule) -> None:
    """Put these operators in the place of those convolutions of a traced graph that gain by it.

    A ReLU that follows becomes part of them, and so does the conversion of uint8 images.
    """
    replaced = [_replaced(node) for node in graph.graph.nodes]
    if any(replaced):
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _replaced(node: Node) -> bool:
    replace = {
        _aten.convolution.default: _replace_forward,
        _aten.convolution_backward.default: _replace_backward,
    }.get(node.target)  # pyright: ignore[reportArgumentType]
    return replace is not None and replace(node, *node.args)


def _replace_forward(
    node: Node, image: Node, weight: Node, bias: Node | None, *settings: Any
) -> bool:
    pixels = unconverted(image)
    if bias is None or not (_fits(pixels, weight, settings) and is_channels_last(node)):
        return False
    if not native.has_operators(SOURCE):
        return False
    users = list(node.users)
    relu = len(users) == 1 and users[0].target is _aten.relu.default
    last, (stride, _) = users[0] if relu else node, settings[0]
    _put(FORWARD, (pixels, weight, bias, stride, relu), last)
    return True


def _replace_backward(
    node: Node, gradient: Node, image: Node, weight: Node, _: Any, *arguments: Any
) -> bool:
    *settings, (of_input, _, of_bias) = arguments
    pixels = unconverted(image)
    if not (of_bias and _fits(pixels, weight, settings)):
        return False
    relu = gradient.target is _aten.threshold_backward.default and gradient.args[2] == 0
    gradient, output = cast("Any", gradient.args[:2]) if relu else (gradient, gradient)
    in_place = [gradient, output, *([pixels] if of_input else [])]
    if not all(map(is_channels_last, in_place)) or not native.has_operators(SOURCE):
        return False
    stride, _ = settings[0]
    _put(BACKWARD, (gradient, output, pixels, weight, stride, relu, of_input), node)
    return True


def _put(operator: Any, arguments: tuple[Any, ...], node: Node) -> None:
    """Put a call in the place of a node."""
    with node.graph.inserting_before(node):
        call = node.graph.call_function(operator, arguments)
    call.meta = node.meta
    node.replace_all_uses_with(call)


SOURCE = Path(__file__).with_suffix(".cpp")

_LANES = 16
"""Numbers of a cell, and outputs, come in multiples of it."""


def _fits(image: Node, weight: Node, settings: Any) -> bool:
    """Tell whether ``winograd.cpp`` can compute a convolution."""
    pixels, weights, stride = value_of(image), value_of(weight), stride_of(*settings)
    if stride is None or pixels.ndim != 4 or len(pixels) == 0:
        return False
    outputs, channels, *kernel = weights.shape
    return (
        kernel in ([2 * stride] * 2, [3 * stride] * 2)
        and outputs % _LANES == channels * stride**2 % _LANES == 0
        and pixels.dtype in (torch.uint8, torch.float32)
        and (is_channels_last(image) or (pixels.dtype == torch.uint8 and pixels.is_contiguous()))
        and weights.dtype == torch.float32
        and weights.is_contiguous()
    )
