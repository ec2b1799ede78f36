"""Gradients of convolutions' weights in bfloat16, in compiled graphs: see ``weight_gradient.cpp``.

Where a processor multiplies tiles (AMX), PyTorch's take a third of a gradient step of the Nature
CNN, and on two cores hardly less than on one.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppo1_lightning.fast import native
from ppo1_lightning.fast.nodes import (
    call,
    getitem,
    is_channels_last,
    laid_out_as,
    stride_of,
    value_of,
)

_aten = torch.ops.aten
_operators = torch.library.Library("ppo1_lightning", "FRAGMENT")
_operators.define(
    "weight_gradient(Tensor gradient, Tensor image, int height, int width, int stride)"
    " -> (Tensor, Tensor)",
)
WEIGHT_GRADIENT = torch.ops.ppo1_lightning.weight_gradient.default
"""From the gradient of the output and the image, ``[B, K, h, w]`` and ``[B, C, H, W]`` in bfloat16
with channels last, to those of ``[K, C, height, width]`` weights and of the bias, in float32. In
graphs compiled ahead of time only."""

C_FUNCTIONS = {
    WEIGHT_GRADIENT: [
        "AOTITorchError aoti_torch_cpu_weight_gradient(AtenTensorHandle, AtenTensorHandle, "
        "int64_t, int64_t, int64_t, AtenTensorHandle *, AtenTensorHandle *)"
    ]
}
"""Declarations of what a compiled graph calls for each operator."""

SOURCE = Path(__file__).with_suffix(".cpp")
_LANES = 16
"""Outputs, and numbers of a cell's row, come in multiples of it."""


@torch.library.register_fake("ppo1_lightning::weight_gradient", lib=_operators)
def _(
    gradient: Tensor, image: Tensor, height: int, width: int, stride: int
) -> tuple[Tensor, Tensor]:
    outputs, channels = gradient.shape[1], image.shape[1]
    of_weight = gradient.new_empty(outputs, channels, height, width, dtype=torch.float32)
    return of_weight, of_weight.new_empty(outputs)


def replace_weight_gradients(graph: GraphModule) -> None:
    """Put this operator in the place of those gradients of a traced graph that it is made for."""
    found = [n for n in graph.graph.nodes if n.target is _aten.convolution_backward.default]
    fitting = [node for node in found if _fits(*node.args)]
    if fitting and _has_tiles():
        for node in fitting:
            _replace(node, *node.args)
        graph.graph.eliminate_dead_code()
        graph.recompile()


def _fits(gradient: Node, image: Node, weight: Node, _: Any, *arguments: Any) -> bool:
    *settings, (_, *of_weight_and_bias) = arguments
    pixels, weights, stride = value_of(image), value_of(weight), stride_of(*settings)
    return (
        stride is not None
        and pixels.dtype == torch.bfloat16
        and pixels.numel() > 0
        and is_channels_last(image)
        and is_channels_last(gradient)
        and len(weights) % _LANES == stride * pixels.shape[1] % _LANES == 0
        and all(side % stride == 0 for side in weights.shape[2:])
        and all(of_weight_and_bias)
    )


def _replace(
    node: Node, gradient: Node, image: Node, weight: Node, biases: Any, *arguments: Any
) -> None:
    *settings, (of_image, *_) = arguments
    sides, dtype = value_of(weight).shape[2:], value_of(weight).dtype  # rounded as PyTorch's are
    with node.graph.inserting_before(node):
        both = call(WEIGHT_GRADIENT, gradient, image, *sides, settings[0][0])
        rounded = [call(_aten._to_copy.default, getitem(both, i), dtype=dtype) for i in (0, 1)]
        results: dict[Any, Node] = dict(enumerate(rounded, start=1))
        if of_image:
            mask = [True, False, False]
            alone = call(node.target, gradient, image, weight, biases, *settings, mask)
            results[0] = getitem(alone, 0)
        for user in [user for user in node.users if user.args[1] in results]:
            user.replace_all_uses_with(laid_out_as(results[user.args[1]], user))


@functools.cache
def _has_tiles() -> bool:
    """Tell whether this processor has them, and the operator could be made."""
    return native.has_operators(SOURCE) and native.load_operators(SOURCE).has_tiles() == 1
