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
        lambda t: (t.sum(0) * t.mean(0)).sum(),
    ],
)
def test_sums_are_rounded_once(function: Callable[[Tensor], Tensor]) -> None:
    terms = torch.rand(100_003, 3) + 0.1
    graph = make_fx(function)(terms)
    sum_in_double(graph)
    result, exact = graph(terms), function(terms.double())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, exact.float(), atol=0, rtol=2e-7)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t.sum(-1),  # few terms
        lambda t: t.double().sum(0),
        lambda t: t.long().sum(0),
        lambda t: t.sum(0, dtype=torch.float64),
        lambda t: t.amax(0),
    ],
)
def test_what_stays(function: Callable[[Tensor], Tensor]) -> None:
    terms = torch.rand(100, FEW)
    graph = make_fx(function)(terms)
    code = graph.code
    sum_in_double(graph)
    assert graph.code == code
