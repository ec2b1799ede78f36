"""Winograd's convolutions equal direct ones in float64, as nearly as float32 lets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_functions import Results, compiled_together, traced
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.func import vjp
from torch.fx import GraphModule

from ppo1_lightning import CnnPolicy
from ppo1_lightning.fast import native
from ppo1_lightning.fast.winograd import BACKWARD, FORWARD, replace_convolutions


@dataclass(frozen=True)
class Case:
    images: int
    channels: int
    height: int
    width: int
    outputs: int
    kernel: int
    stride: int
    uint8: bool = False
    channels_last: bool = True
    relu: bool = True
    black: bool = False

    def tensors(self) -> list[Tensor]:
        """Return image, weight, bias and the gradient of the output."""
        shape = (self.images, self.channels, self.height, self.width)
        image = torch.randint(0, 256, shape, dtype=torch.uint8) if self.uint8 else randn(*shape)
        if self.black:
            image = image * sprites(*shape)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        numbers = self.channels * self.kernel**2
        weight = randn(self.outputs, self.channels, self.kernel, self.kernel) / numbers**0.5
        bias = randn(self.outputs)
        if self.black:
            bias[::2] = 0
        if self.uint8:
            weight /= 255
        output = F.conv2d(image.float(), weight, bias, self.stride)
        gradient = torch.randn_like(output).contiguous(memory_format=torch.channels_last)
        return [image, weight, bias, gradient]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape)


def sprites(images: int, channels: int, height: int, width: int) -> Tensor:
    """Return where something is to be seen: small rectangles, in some channels; first nothing."""
    seen = torch.zeros(images, channels, height, width, dtype=torch.bool)
    for image in seen[1:]:
        for y, x, down, across in torch.randint(0, max(height, width), (3, 4)).tolist():
            some = torch.rand(channels, 1, 1) < 0.7
            image[:, y : y + 1 + down % 5, x : x + 1 + across % 5] |= some
    return seen


NATURE = [
    Case(9, 4, 84, 84, 32, 8, 4, uint8=True, channels_last=False),
    Case(13, 32, 20, 20, 64, 4, 2),
    Case(7, 64, 9, 9, 64, 3, 1),
]
CASES = [
    *NATURE,
    Case(12, 3, 32, 40, 16, 8, 4, uint8=True),  # as Gymnasium has images
    Case(40, 4, 23, 17, 16, 4, 2, uint8=True, channels_last=False),  # pixels no kernel reaches
    Case(3, 16, 43, 30, 48, 2, 1),
    Case(1, 16, 60, 61, 80, 3, 1, relu=False),  # one image
    Case(50, 8, 21, 25, 16, 6, 2),
    Case(5, 4, 41, 38, 32, 4, 2, relu=False),
    Case(2, 16, 120, 120, 16, 2, 1),  # more tiles than a block has
    Case(3, 16, 2, 4, 16, 2, 1),  # less than a tile
]

BLACK = [replace(case, black=True) for case in (*CASES[:6], CASES[8])]


def convolve(case: Case, *tensors: Tensor) -> list[Tensor]:
    """Return the output and the gradients of image, weight and bias, of uint8 images none."""
    image, weight, bias, gradient = tensors

    def function(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output = F.conv2d(image, weight, bias, case.stride)
        return output.relu() if case.relu else output

    if case.uint8:
        image = image.to(weight.dtype, memory_format=torch.channels_last)
        output, pull_back, *_ = vjp(lambda *rest: function(image, *rest), weight, bias)
    else:
        output, pull_back, *_ = vjp(function, image, weight, bias)
    return [output, *pull_back(gradient)]


def operators(graph: GraphModule) -> list[Any]:
    """Return the convolutions of a graph, ours and PyTorch's."""
    ours = {FORWARD: "ours", BACKWARD: "ours, backward"}
    theirs = {
        torch.ops.aten.convolution.default: "direct",
        torch.ops.aten.convolution_backward.default: "direct, backward",
    }
    names = ours | theirs
    return [names[node.target] for node in graph.graph.nodes if node.target in names]


def with_ours(graph: GraphModule) -> None:
    replace_convolutions(graph)
    assert set(operators(graph)) <= {"ours", "ours, backward"}


def read_twice(image: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return a convolution's output besides what its ReLU makes of it."""
    output = F.conv2d(image, weight, bias)
    return [output, output.relu(), gradient + output.relu()]


def activate(image: Tensor, weight: Tensor, bias: Tensor, _: Tensor) -> list[Tensor]:
    return [F.conv2d(image, weight, bias).relu()]


class OneGraph:
    """All that is compiled here, in one graph: a compilation takes long."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        cases = [*CASES, *BLACK]
        functions: list[Callable[..., Results]] = [partial(convolve, case) for case in cases]
        self.tensors = [case.tensors() for case in cases]
        for function in (read_twice, activate):
            functions.append(function)
            self.tensors.append(NATURE[2].tensors())
        self.tensors[-1][0][2, 5, 4, 4] = torch.nan
        self.run = compiled_together(functions, with_ours, self.tensors)


@pytest.fixture(scope="module")
def graph() -> OneGraph:
    return OneGraph()


@pytest.fixture(scope="module")
def results(graph: OneGraph) -> list[list[Tensor]]:
    return graph.run()


@pytest.mark.heavy
@pytest.mark.parametrize("number", range(len(CASES)), ids=map(str, CASES))
@pytest.mark.slow
def test_outputs_and_gradients_are_those_of_a_direct_convolution(
    number: int, graph: OneGraph, results: list[list[Tensor]]
):
    case, tensors, ours = CASES[number], graph.tensors[number], results[number]
    exact = convolve(case, *map(double, tensors))
    sums_of_magnitudes = convolve(case, *(double(tensor).abs() for tensor in tensors))
    direct = convolve(case, *tensors)
    for result, expected, terms, usual in zip(ours, exact, sums_of_magnitudes, direct, strict=True):
        assert result.shape == expected.shape
        assert ((result - expected).abs() <= 1e-6 * terms).all()
        assert (result - expected).norm() <= 5 * (usual - expected).norm()


@pytest.mark.heavy
@pytest.mark.parametrize("number", range(len(BLACK)), ids=map(str, BLACK))
@pytest.mark.slow
def test_an_output_that_sees_zeros_alone_is_the_bias_to_the_last_bit(
    number: int, graph: OneGraph, results: list[list[Tensor]]
):
    """Or else rounding decides where the ReLU lets the bias's gradient pass."""
    case, place = BLACK[number], len(CASES) + number
    tensors, (output, *gradients) = graph.tensors[place], results[place]
    image, weight, bias, _ = tensors
    ones = torch.ones_like(weight[:1], dtype=torch.float64)
    blank = (F.conv2d((image != 0).double(), ones, stride=case.stride) == 0).expand_as(output)
    assert blank[0].all()
    assert 0.2 < blank[1:].double().mean() < 0.99
    expected = bias.relu() if case.relu else bias
    assert torch.equal(output[blank], expected[:, None, None].expand_as(output)[blank])
    _, *exact = convolve(case, *map(double, tensors))
    for gradient, its_exact in zip(gradients, exact, strict=True):
        assert (gradient - its_exact).norm() <= 1e-6 * its_exact.norm()


def double(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.uint8 else tensor.double()


@pytest.mark.heavy
def test_the_nature_network_learns_and_acts_by_them_alone():
    policy = CnnPolicy(Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), size="large")
    weights = {name: parameter.detach() for name, parameter in policy.named_parameters()}

    def gradients(*tensors: Tensor) -> Sequence[Tensor]:
        *parameters, observations = tensors

        def loss(*parameters: Tensor) -> Tensor:
            named = dict(zip(weights, parameters, strict=True))
            logits, values, _ = torch.func.functional_call(policy, named, (observations, None))
            return logits.square().mean() + values.square().mean()

        return torch.func.grad(loss, argnums=tuple(range(len(weights))))(*parameters)

    observations = torch.randint(0, 256, (32, 4, 84, 84), dtype=torch.uint8)
    graph = traced(gradients, *weights.values(), observations)
    replace_convolutions(graph)
    assert operators(graph) == ["ours"] * 3 + ["ours, backward"] * 3
    others = [node.target for node in graph.graph.nodes]
    assert torch.ops.aten._to_copy.default not in others
    assert others.count(torch.ops.aten.relu.default) == 1  # of the linear layer
    assert others.count(torch.ops.aten.threshold_backward.default) == 1


NOT_OURS = {
    "padding": (Case(9, 16, 20, 20, 16, 3, 1), {"padding": 1}),
    "dilation": (Case(9, 16, 20, 20, 16, 3, 1), {"dilation": 2}),
    "groups": (Case(9, 16, 20, 20, 32, 3, 1), {"groups": 2}),
    "unequal strides": (Case(9, 16, 40, 40, 16, 4, 2), {"stride": (2, 1)}),
    "a kernel of five strides": (Case(9, 16, 40, 40, 16, 5, 1), {}),
    "half a stride": (Case(9, 16, 40, 40, 16, 3, 2), {}),
    "few outputs": (Case(9, 16, 40, 40, 8, 4, 2), {}),
    "few channels": (Case(9, 3, 40, 40, 16, 3, 1), {}),
    "channels first": (Case(9, 16, 20, 20, 16, 3, 1, channels_last=False), {}),
    "no bias": (Case(9, 16, 20, 20, 16, 3, 1), {"bias": None}),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_other_convolutions_stay(name: str):
    case, settings = NOT_OURS[name]
    image, weight, bias, _ = case.tensors()
    weight = weight[:, : case.channels // settings.get("groups", 1)].contiguous()

    def function(image: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        arguments: dict[str, Any] = {"stride": case.stride, "bias": bias} | settings
        output, pull_back, *_ = vjp(lambda w: F.conv2d(image, w, **arguments).relu(), weight)
        return [output, *pull_back(output)]

    graph = traced(function, image, weight, bias)
    code = graph.code
    replace_convolutions(graph)
    assert operators(graph) == ["direct", "direct, backward"]
    assert graph.code == code


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay(dtype: torch.dtype):
    image, weight, bias, _ = (t.to(dtype) for t in NATURE[1].tensors())
    graph = traced(lambda *tensors: F.conv2d(*tensors, stride=2), image, weight, bias)
    replace_convolutions(graph)
    assert operators(graph) == ["direct"]


@pytest.mark.heavy
def test_a_convolution_whose_output_is_read_besides_its_relu_keeps_both(
    graph: OneGraph, results: list[list[Tensor]]
):
    torch.testing.assert_close(results[-2], read_twice(*graph.tensors[-2]))


@pytest.mark.heavy
@pytest.mark.slow
def test_what_is_not_a_number_passes(results: list[list[Tensor]]):
    (output,) = results[-1]
    assert output[2].isnan().any()
    assert output[[0, 1, 3, 4, 5, 6]].isfinite().all()


@pytest.mark.heavy
@pytest.mark.slow
def test_the_same_twice_and_on_any_number_of_threads(graph: OneGraph):
    threads = torch.get_num_threads()
    case = CASES.index(NATURE[1])
    runs = []
    try:
        for count in (1, 1, 3, 3, 25):  # more than there are images, too
            torch.set_num_threads(count)
            runs.append(graph.run()[case])
    finally:
        torch.set_num_threads(threads)
    one, again, three, three_again, many = runs
    for a, b in ((one, again), (three, three_again)):
        assert all(map(torch.equal, a, b))
    for a, *others in zip(one, three, many, strict=True):
        assert all((a - b).norm() <= 3e-6 * a.norm() for b in others)


def test_without_a_compiler_convolutions_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("g++ failed: no room")

    monkeypatch.setattr(native, "load", fail)
    native.has_operators.cache_clear()
    try:
        image, weight, bias, _ = NATURE[1].tensors()
        graph = traced(lambda *tensors: F.conv2d(*tensors, stride=2), image, weight, bias)
        replace_convolutions(graph)
    finally:
        native.has_operators.cache_clear()
    assert operators(graph) == ["direct"]
    assert "winograd is left to PyTorch: g++ failed: no room" in caplog.text


def test_channels_that_come_first_stay_so():
    """Ours would put them last, under views that are written for the others."""
    image, weight, bias, _ = NATURE[0].tensors()

    def function(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(image.float(), weight, bias, 4).flatten(1)

    graph = traced(function, image.contiguous(), weight, bias)
    replace_convolutions(graph)
    assert operators(graph) == ["direct"]
