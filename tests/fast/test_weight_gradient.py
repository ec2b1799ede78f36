"""Gradients of weights by tiles are those in float64, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled_functions import compiled_together, targets, traced
from half_precision import Convolution, assert_near
from torch import Tensor
from torch.func import vjp
from torch.fx import GraphModule

from ppo1_lightning.fast import native, weight_gradient
from ppo1_lightning.fast.space_to_depth import read_in_cells
from ppo1_lightning.fast.weight_gradient import WEIGHT_GRADIENT, replace_weight_gradients
from ppo1_lightning.fast.winograd import replace_convolutions

NATURE = [
    Convolution(9, 64, 21, 21, 32, (2, 2), 1),  # cells of 4 x 4 pixels
    Convolution(11, 32, 20, 20, 64, (4, 4), 2),
    Convolution(23, 64, 9, 9, 64, (3, 3), 1),
]
CASES = [
    *NATURE,
    Convolution(13, 16, 20, 20, 32, (4, 4), 2),  # of the small CNN
    Convolution(7, 16, 21, 23, 48, (2, 6), 2),  # odd numbers of tiles, pixels no kernel reaches
    Convolution(1, 32, 5, 7, 16, (5, 1), 1),  # less than a chunk
    Convolution(2, 16, 40, 40, 16, (2, 2), 1),  # an image larger than a group
    Convolution(3, 16, 1, 1, 16, (1, 1), 1),
]
has_tiles = pytest.mark.skipif("not weight_gradient._has_tiles()", reason="needs AMX")


@pytest.fixture(scope="module")
def results() -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return what one graph of all cases says of each, on two threads, and what is right."""
    torch.manual_seed(0)
    tensors = [case.tensors(uint8=False) for case in CASES]

    run = compiled_together(CASES, replace_weight_gradients, tensors)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, found = run(), run()  # the second time in memory that has been used
    finally:
        torch.set_num_threads(threads)
    for once, again in zip(first, found, strict=True):
        assert all(map(torch.equal, once, again))
    exact = [case.exact(*its) for case, its in zip(CASES, tensors, strict=True)]
    return [*zip(found, exact, strict=True)]


@has_tiles
@pytest.mark.heavy
@pytest.mark.parametrize("number", range(len(CASES)), ids=map(str, CASES))
def test_gradients_are_those_of_pytorch(
    number: int, results: list[tuple[list[Tensor], list[Tensor]]]
) -> None:
    assert_near(*results[number])


@pytest.fixture
def with_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewrite as a machine does that has them."""
    monkeypatch.setattr(weight_gradient, "_has_tiles", lambda: True)


@pytest.mark.usefixtures("with_tiles")
@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
def test_all_of_these_are_replaced(case: Convolution) -> None:
    graph = traced(case, *case.tensors(uint8=False))
    replace_weight_gradients(graph)
    assert WEIGHT_GRADIENT in targets(graph)


@pytest.mark.usefixtures("with_tiles")
@pytest.mark.parametrize(
    "case",
    [
        replace(NATURE[0], outputs=24),
        replace(NATURE[0], channels=8),
        replace(NATURE[1], kernel=(3, 4)),
    ],
)
def test_what_is_not_made_of_tiles_stays(case: Convolution) -> None:
    graph = traced(case, *case.tensors(uint8=False))
    replace_weight_gradients(graph)
    assert WEIGHT_GRADIENT not in targets(graph)


@pytest.mark.usefixtures("with_tiles")
def test_float32_stays() -> None:
    graph = traced(NATURE[0], *(tensor.float() for tensor in NATURE[0].tensors(uint8=False)))
    replace_weight_gradients(graph)
    assert WEIGHT_GRADIENT not in targets(graph)


@pytest.mark.parametrize("works", [True, False])
def test_a_machine_without_tiles_or_a_compiler_keeps_pytorchs(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(has_tiles=lambda: int(not works))
    monkeypatch.setattr(native, "has_operators", lambda _: works)
    monkeypatch.setattr(native, "load_operators", lambda _: library)
    weight_gradient._has_tiles.cache_clear()
    try:
        graph = traced(NATURE[0], *NATURE[0].tensors(uint8=False))
        replace_weight_gradients(graph)
    finally:
        weight_gradient._has_tiles.cache_clear()
    assert WEIGHT_GRADIENT not in targets(graph)


def test_nothing_is_compiled_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(weight_gradient, "_has_tiles", lambda: asked.append(1))
    replace_weight_gradients(traced(lambda a, b: a @ b, torch.ones(2, 2), torch.ones(2, 2)))
    assert not asked


def in_a_line(image: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    output, pull_back, *_ = vjp(lambda *t: F.conv1d(*t, stride=2), image, weight, bias)
    return output, *pull_back(torch.ones_like(output))


@pytest.mark.usefixtures("with_tiles")
@pytest.mark.parametrize("rewrite", [replace_weight_gradients, read_in_cells, replace_convolutions])
def test_other_convolutions_stay(rewrite: Callable[[GraphModule], None]) -> None:
    tensors = [torch.randn(2, 16, 9), torch.randn(16, 16, 2), torch.randn(16)]
    for dtype in (torch.float32, torch.bfloat16):
        graph = traced(in_a_line, *(tensor.to(dtype) for tensor in tensors))
        before = targets(graph)
        rewrite(graph)
        assert targets(graph) == before
