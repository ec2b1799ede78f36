"""Convolutions of uint8 images over cells are those over pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from compiled_functions import compiled_together, targets, traced
from half_precision import Convolution, assert_near
from torch import Tensor
from torch.func import vjp

from ppo1_lightning.fast.space_to_depth import SPACE_TO_DEPTH, read_in_cells

NATURE = Convolution(9, 4, 84, 84, 32, (8, 8), 4)
CASES = [
    NATURE,
    Convolution(3, 3, 23, 17, 16, (4, 6), 2),  # pixels that no kernel reaches
    Convolution(2, 1, 12, 13, 5, (9, 3), 3),
    Convolution(1, 2, 4, 4, 3, (4, 4), 4),  # a single cell
]


def flattened(image: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return a convolution of channels that come first, and its gradients, by views alone."""
    pixels = image.to(weight.dtype)

    def convolve(weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(pixels, weight.contiguous(), bias, 4).flatten(1)

    output, pull_back, *_ = vjp(convolve, weight, bias)
    of_weight, of_bias = pull_back(gradient.contiguous().flatten(1))
    return [output, of_weight.view(-1), of_bias]


def of_one(image: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return an output, and the gradients of weight and bias where only one of them learns."""
    pixels = image.to(torch.float32, memory_format=torch.channels_last).to(weight.dtype)
    output, of_weight, *_ = vjp(lambda w: F.conv2d(pixels, w, bias, 4), weight)
    _, of_bias, *_ = vjp(lambda b: F.conv2d(pixels, weight, b, 4), bias)
    return [output, *of_weight(gradient), *of_bias(gradient)]


FUNCTIONS: dict[str, Callable[..., list[Tensor]]] = {
    **{str(case): case for case in CASES},
    "flattened": flattened,
    "of one": of_one,
}


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Return what one graph of all says of each, and what is right."""
    torch.manual_seed(0)
    tensors = [case.tensors(uint8=True) for case in (*CASES, NATURE, NATURE)]

    found = compiled_together([*FUNCTIONS.values()], read_in_cells, tensors)()
    exact = [
        function(image, *(tensor.double() for tensor in rest))
        for function, (image, *rest) in zip(FUNCTIONS.values(), tensors, strict=True)
    ]
    return dict(zip(FUNCTIONS, zip(found, exact, strict=True), strict=True))


@pytest.mark.heavy
@pytest.mark.parametrize("name", FUNCTIONS)
def test_outputs_and_gradients_are_those_over_pixels(
    name: str, results: dict[str, tuple[list[Tensor], list[Tensor]]]
) -> None:
    assert_near(*results[name])


@pytest.mark.heavy
def test_an_image_is_read_once_for_a_convolution_and_its_gradient() -> None:
    graph = traced(NATURE, *NATURE.tensors(uint8=True))
    read_in_cells(graph)
    assert [node.target for node in graph.graph.nodes].count(SPACE_TO_DEPTH) == 1


@pytest.mark.parametrize(
    "case",
    [
        replace(NATURE, kernel=(8, 6)),  # half a cell
        replace(NATURE, stride=1),
    ],
)
def test_what_is_not_made_of_cells_stays(case: Convolution) -> None:
    graph = traced(case, *case.tensors(uint8=True))
    before = targets(graph)
    read_in_cells(graph)
    assert targets(graph) == before


def test_other_precisions_and_orders_stay() -> None:
    image, *rest = NATURE.tensors(uint8=True)
    others = [
        [image, *(tensor.float() for tensor in rest)],
        [image.contiguous(memory_format=torch.channels_last), *rest],
        NATURE.tensors(uint8=False),
    ]
    for tensors in others:
        graph = traced(NATURE, *tensors)
        read_in_cells(graph)
        assert SPACE_TO_DEPTH not in targets(graph)
