"""Whatever the pictures, a compiled CNN has the gradient of a direct convolution in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from pictures import COUNT, pictures
from torch import Tensor

from ppo1_lightning import CnnPolicy
from ppo1_lightning.fast.graphs import Graph
from ppo1_lightning.policies.cnn import ARCHITECTURES

PICTURES = pictures()
ACTIONS = 4


class Compiled:
    """The gradient of a weighted sum of a policy's outputs, as a compiled graph."""

    def __init__(self, size: str) -> None:
        torch.manual_seed(0)
        self.size = size
        self.policy = CnnPolicy(Box(0, 255, (4, 84, 84), np.uint8), Discrete(ACTIONS), size=size)
        with torch.no_grad():  # the original's start is small, and would hide what lies below
            self.policy.action_head.weight.mul_(100)
        self.named = {name: p.detach() for name, p in self.policy.named_parameters()}
        self._graph = Graph(self._write, compiled=True)

    def gradients(self, images: Tensor, coefficients: Tensor) -> list[Tensor]:
        results = [torch.full_like(p, torch.nan) for p in self.named.values()]
        fixed = [*self.named.values(), images, coefficients, *results]
        with torch.inference_mode():
            self._graph.bind(fixed, [])(0, 1)
        return results

    def exact(self, images: Tensor, coefficients: Tensor) -> Sequence[Tensor]:
        """Return the same, direct and in float64."""
        parameters = [p.double().requires_grad_() for p in self.named.values()]
        outputs = self._outputs(parameters, images.double())
        return torch.autograd.grad((outputs * coefficients).sum(), parameters)

    def _outputs(self, parameters: Sequence[Tensor], images: Tensor) -> Tensor:
        """Return logits and value of images ``[B, 4, 84, 84]``, as `CnnPolicy` has them."""
        named = dict(zip(self.named, parameters, strict=True))
        features = self.layers(named, images)[-1].relu()
        heads = [(named[f"{n}.weight"], named[f"{n}.bias"]) for n in ("action_head", "value_head")]
        return torch.cat([F.linear(features, *head) for head in heads], 1)

    def layers(self, named: dict[str, Tensor], images: Tensor) -> list[Tensor]:
        """Return what goes into each ReLU."""
        layers, inputs = [], images / 255
        for i, layer in enumerate(ARCHITECTURES[self.size].convolutions):
            name = f"trunk.convolutions.{2 * i}"
            inputs = F.conv2d(inputs, named[f"{name}.weight"], named[f"{name}.bias"], layer.stride)
            layers.append(inputs)
            inputs = inputs.relu()
        inputs = inputs.permute(0, 2, 3, 1).flatten(1)
        return [*layers, F.linear(inputs, named["trunk.linear.weight"], named["trunk.linear.bias"])]

    def _write(self, *tensors: Tensor) -> None:
        parameters, (images, coefficients, *results) = (
            tensors[: len(self.named)],
            tensors[len(self.named) :],
        )

        def loss(*parameters: Tensor) -> Tensor:
            named = dict(zip(self.named, parameters, strict=True))
            logits, values, _ = torch.func.functional_call(self.policy, named, (images, None))
            return (torch.cat([logits, values[:, None]], 1) * coefficients).sum()

        gradients = torch.func.grad(loss, argnums=tuple(range(len(self.named))))(*parameters)
        for result, gradient in zip(results, gradients, strict=True):
            result.copy_(gradient)


@pytest.fixture(scope="module", params=["small", "large"])
def compiled(request: pytest.FixtureRequest) -> Compiled:
    return Compiled(request.param)


@pytest.mark.heavy
@pytest.mark.parametrize("biases", [0.0, 0.1])
@pytest.mark.parametrize("kind", PICTURES)
def test_the_gradient_is_that_of_direct_convolutions(kind: str, biases: float, compiled: Compiled):
    generator = torch.Generator().manual_seed(len(kind))
    for name, parameter in compiled.named.items():
        if name.endswith("bias"):
            parameter.copy_(biases * torch.randn(parameter.shape, generator=generator))
    images = PICTURES[kind]
    coefficients = torch.randn(COUNT, ACTIONS + 1, generator=generator)
    coefficients[~_certain(compiled, images)] = 0
    exact: Any = compiled.exact(images, coefficients)
    ours = compiled.gradients(images, coefficients)
    assert coefficients.any()
    scale = torch.stack([gradient.norm() for gradient in exact]).norm()
    for name, gradient, expected in zip(compiled.named, ours, exact, strict=True):
        error = (gradient - expected).norm()
        assert error <= 1e-5 * expected.norm() + 1e-8 * scale, name


def _certain(compiled: Compiled, images: Tensor) -> Tensor:
    """Tell the pictures on which no ReLU's input is so near to zero that float32 could not say.

    Exactly zero is certain.
    """
    named = {name: parameter.double() for name, parameter in compiled.named.items()}
    certain = torch.ones(len(images), dtype=torch.bool)
    for layer in compiled.layers(named, images.double()):
        near = (layer != 0) & (layer.abs() < 1e-6 * layer.abs().max())
        certain &= ~near.flatten(1).any(1)
    return certain
