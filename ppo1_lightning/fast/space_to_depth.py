"""Convolutions of images in bfloat16, in compiled graphs, as ones with stride 1 over cells.

A cell of stride x stride pixels is a vector of all their channels. A convolution of the few
channels of an image uses a fraction of a processor that multiplies matrices in bfloat16, and
converting its bytes takes longer than it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppo1_lightning.fast import native
from ppo1_lightning.fast.nodes import call, getitem, laid_out_as, stride_of, unconverted, value_of

_aten = torch.ops.aten
_FORWARD, _BACKWARD = _aten.convolution.default, _aten.convolution_backward.default

_operators = torch.library.Library("ppo1_lightning", "FRAGMENT")
_operators.define("space_to_depth(Tensor pixels, int stride) -> Tensor")
SPACE_TO_DEPTH = torch.ops.ppo1_lightning.space_to_depth.default
"""``[B, C, H, W]`` uint8 to bfloat16 ``[B, C * stride**2, H // stride, W // stride]`` with channels
last, in the order of channels, then rows, then columns. In graphs compiled ahead of time only."""

C_FUNCTIONS = {
    SPACE_TO_DEPTH: [
        "AOTITorchError aoti_torch_cpu_space_to_depth("
        "AtenTensorHandle, int64_t, AtenTensorHandle *)"
    ]
}
"""Declarations of what a compiled graph calls for each operator."""


SOURCE = Path(__file__).with_suffix(".cpp")


@torch.library.register_fake("ppo1_lightning::space_to_depth", lib=_operators)
def _(pixels: Tensor, stride: int) -> Tensor:
    images, channels, height, width = pixels.shape
    cells = pixels.new_empty(
        *(images, channels * stride**2, height // stride, width // stride), dtype=torch.bfloat16
    )
    return cells.contiguous(memory_format=torch.channels_last)


_Cells = dict[tuple[Node, int], Node]
"""Images in cells by their pixels and the stride, the same for a convolution and its gradient."""


def read_in_cells(graph: GraphModule) -> None:
    """Let those convolutions of a traced graph that see uint8 images see cells of them."""
    cells: _Cells = {}
    for node in graph.graph.nodes:
        if node.target is _FORWARD and _fits(*node.args):
            node.replace_all_uses_with(_forward(node, cells, *node.args))
        elif node.target is _BACKWARD and _fits(*node.args[1:10], mask=node.args[10]):
            results = _backward(node, cells, *node.args)
            for user in [user for user in node.users if user.args[1] in results]:
                with node.graph.inserting_before(node):
                    user.replace_all_uses_with(laid_out_as(results[user.args[1]], user))
    if cells:
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _fits(
    image: Node, weight: Node, _: Any, *settings: Any, mask: Sequence[bool] = (False, True)
) -> bool:
    """Tell whether a convolution sees images whole cells at a time.

    Args:
        mask: of its gradient: whether image and weight have one.
    """
    pixels, weights, stride = value_of(unconverted(image)), value_of(weight), stride_of(*settings)
    return (
        stride is not None
        and stride > 1
        and pixels.dtype == torch.uint8
        and pixels.ndim == 4
        and pixels.is_contiguous()
        and weights.dtype == torch.bfloat16
        and all(side % stride == 0 for side in weights.shape[2:])
        and list(mask[:2]) == [False, True]
        and native.has_operators(SOURCE)
    )


def _forward(
    node: Node, cells: _Cells, image: Node, weight: Node, bias: Any, *settings: Any
) -> Node:
    (stride, _), *others = settings
    with node.graph.inserting_before(node):
        seen, kernel = _cells_of(image, stride, cells), _in_cells(weight, stride)
        return laid_out_as(call(_FORWARD, seen, kernel, bias, [1, 1], *others), node)


def _backward(node: Node, cells: _Cells, gradient: Node, *arguments: Any) -> dict[Any, Node]:
    """Return the gradients of weight and bias that are asked for, by their place."""
    image, weight, biases, (stride, _), *others = arguments
    with node.graph.inserting_before(node):
        seen, kernel = _cells_of(image, stride, cells), _in_cells(weight, stride)
        both = call(_BACKWARD, gradient, seen, kernel, biases, [1, 1], *others)
        results = {1: _in_pixels(getitem(both, 1), weight, stride)}
        if others[-1][2]:
            results[2] = getitem(both, 2)
        return results


def _cells_of(image: Node, stride: int, cells: _Cells) -> Node:
    pixels = unconverted(image)
    if (pixels, stride) not in cells:
        cells[pixels, stride] = call(SPACE_TO_DEPTH, pixels, stride)
    return cells[pixels, stride]


def _in_cells(weight: Node, stride: int) -> Node:
    """Return kernels ``[K, C, k, l]`` over pixels as ones over cells."""
    outputs, channels, height, width = value_of(weight).shape
    down, across = height // stride, width // stride
    split = call(_aten.reshape.default, weight, [outputs, channels, down, stride, across, stride])
    taps = call(_aten.permute.default, split, [0, 1, 3, 5, 2, 4])
    return call(_aten.reshape.default, taps, [outputs, channels * stride**2, down, across])


def _in_pixels(kernel: Node, weight: Node, stride: int) -> Node:
    """Undo `_in_cells` for a gradient."""
    outputs, channels, *sides = value_of(weight).shape
    down, across = (side // stride for side in sides)
    split = call(_aten.reshape.default, kernel, [outputs, channels, stride, stride, down, across])
    taps = call(_aten.permute.default, split, [0, 1, 4, 2, 5, 3])
    return call(_aten.reshape.default, taps, [outputs, channels, *sides])
