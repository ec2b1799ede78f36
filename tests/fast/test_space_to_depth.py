"""Convolutions of uint8 images over cells are those over pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compiled_functions import compiled, targets, traced
from half_precision import Convolution, assert_near
from torch import Tensor

from ppo1_lightning.fast.space_to_depth import SPACE_TO_DEPTH, read_in_cells

NATURE = Convolution(9, 4, 84, 84, 32, (8, 8), 4)
CASES = [
    NATURE,
    Convolution(3, 3, 23, 17, 16, (4, 6), 2),  # pixels that no kernel reaches
    Convolution(2, 1, 12, 13, 5, (9, 3), 3),
    Convolution(1, 2, 4, 4, 3, (4, 4), 4),  # a single cell
]


@pytest.fixture(scope="module")
def results() -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return what one graph of all cases says of each, and what is right."""
    torch.manual_seed(0)
    tensors = [case.tensors(uint8=True) for case in CASES]

    def everything(*flat: Tensor) -> list[Tensor]:
        split = [flat[i : i + 4] for i in range(0, len(flat), 4)]
        return [r for case, its in zip(CASES, split, strict=True) for r in case(*its)]

    found = compiled(everything, read_in_cells, *(t for its in tensors for t in its))()
    exact = [case.exact(*its) for case, its in zip(CASES, tensors, strict=True)]
    return [(found[3 * i : 3 * i + 3], its) for i, its in enumerate(exact)]


@pytest.mark.heavy
@pytest.mark.parametrize("number", range(len(CASES)), ids=map(str, CASES))
def test_outputs_and_gradients_are_those_over_pixels(
    number: int, results: list[tuple[list[Tensor], list[Tensor]]]
) -> None:
    assert_near(*results[number])


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
