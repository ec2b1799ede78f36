"""Sums in double precision: as exact as a float32 result can be, and no other node touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.fast.sums import FEW, sum_in_double


@pytest.mark.parametrize(
    "function",
    [
        torch.sum,
        torch.mean,
        lambda t: t.sum(0),
        lambda t: t.sum(0, keepdim=True),
        lambda t: t.mean((0,)),
        lambda t: torch.stack([t.sum(0), t.mean(0)]),
    ],
)
def test_sums_are_rounded_once(function: Callable[[Tensor], Tensor]) -> None:
    terms = torch.full((10_003, 3), 0.1)
    terms[0] = 2.0**24  # to which a tenth cannot be added in float32
    terms[1] = -(2.0**24)
    graph = make_fx(function)(terms)
    without = graph(terms)
    sum_in_double(graph)
    result, exact = graph(terms), function(terms.double()).float()
    assert result.dtype == torch.float32
    assert torch.equal(result, exact)
    assert not torch.equal(without, exact)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t.sum(-1),  # few terms
        lambda t: t.double().sum(0),
        lambda t: t.long().sum(0),
        lambda t: t.sum(0, dtype=torch.float64),
        lambda t: t.half().sum(0),
        lambda t: t.bfloat16().mean(0),
        lambda t: t.norm(),
    ],
)
def test_what_stays(function: Callable[[Tensor], Tensor]) -> None:
    terms = torch.rand(100, FEW)
    graph = make_fx(function)(terms)
    code = graph.code
    sum_in_double(graph)
    assert graph.code == code
