"""Convolutions in bfloat16 of some shapes, and what they are in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp

ROUNDING = 2**-8
"""Of bfloat16, relative to a number."""


@dataclass(frozen=True)
class Convolution:
    images: int
    channels: int
    height: int
    width: int
    outputs: int
    kernel: tuple[int, int]
    stride: int

    def tensors(self, *, uint8: bool) -> list[Tensor]:
        """Return image, weight, bias and the gradient of the output."""
        shape = self.images, self.channels, self.height, self.width
        image = torch.randint(0, 256, shape, dtype=torch.uint8) if uint8 else _half(*shape)
        weight = _half(self.outputs, self.channels, *self.kernel).contiguous()
        down, across = (
            (side - taps) // self.stride + 1
            for side, taps in zip((self.height, self.width), self.kernel, strict=True)
        )
        gradient = _half(self.images, self.outputs, down, across)
        return [
            image,
            weight / (255 if uint8 else 1),
            torch.randn(self.outputs).bfloat16(),
            gradient,
        ]

    def __call__(
        self, image: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor
    ) -> list[Tensor]:
        """Return the output and the gradients of image (where it has one), weight and bias."""

        def convolve(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(image, weight, bias, self.stride)

        if image.dtype == torch.uint8:
            pixels = image.to(torch.float32, memory_format=torch.channels_last).to(weight.dtype)
            output, pull_back, *_ = vjp(lambda *rest: convolve(pixels, *rest), weight, bias)
        else:
            output, pull_back, *_ = vjp(convolve, image, weight, bias)
        return [output, *pull_back(gradient)]

    def exact(self, image: Tensor, *rest: Tensor) -> list[Tensor]:
        """Return the same in float64."""
        image = image if image.dtype == torch.uint8 else image.double()
        return self(image, *(tensor.double() for tensor in rest))


def _half(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


def assert_near(results: list[Tensor], exact: list[Tensor]) -> None:
    """Compare each with float64, by the norm: numbers are rounded once, and so are products."""
    for result, expected in zip(results, exact, strict=True):
        assert (result.double() - expected).norm() <= ROUNDING * expected.norm()
