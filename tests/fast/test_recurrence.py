"""The operator of memory against the same unrolled, and its derivative against autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vjp
from torch.fx.experimental.proxy_tensor import make_fx

from ppo1_lightning.fast import recurrence
from ppo1_lightning.policies import memory
from ppo1_lightning.policies.memory import CELLS, unrolled

pytestmark = pytest.mark.heavy  # compiled, once

GATES = {"gru": 3, "lstm": 4}
SIZES = {
    "small": (7, 3, 5),
    "one unit": (20, 1, 33),
    "threads": (16, 5, 64),
    "every_row": (4, 2, 8),
}


def tensors_of(kind: str, size: str) -> Any:
    torch.manual_seed(0)
    (length, units, hidden), gates = SIZES[size], GATES[kind]
    starts = torch.rand(length, units) < 0.2
    return (
        torch.randn(length, units, gates * hidden),
        torch.randn(gates * hidden, hidden) / hidden**0.5,
        0.1 * torch.randn(gates * hidden),
        torch.randn(units, CELLS[kind].parts * hidden),
        starts | (size == "every_row"),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", GATES)
def test_it_computes_what_is_unrolled(kind: str, size: str) -> None:
    *numbers, starts = tensors_of(kind, size)
    for given in numbers:
        given.requires_grad_()
    scans: Any = recurrence._scan, unrolled
    ours, theirs = (scan(kind, *numbers, starts) for scan in scans)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((o * weights).sum(), numbers) for o in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_a_graph_has_it_twice_however_long_the_unit() -> None:
    *numbers, starts = tensors_of("gru", "threads")

    def gradient(*given: Tensor) -> Tensor:
        scan: Any = memory.scan
        states, pull_back, *_ = vjp(lambda *g: scan("gru", *g, starts), *given)
        return pull_back(torch.ones_like(states))[1]

    with torch.no_grad(), recurrence.as_an_operator():
        graph = make_fx(gradient)(*numbers)
    called = [node.target for node in graph.graph.nodes]
    assert called.count(recurrence.FORWARD) == called.count(recurrence.BACKWARD) == 1
    assert len(called) < 40
    assert memory.scan is unrolled  # as before
    torch.testing.assert_close(graph(*numbers), gradient(*numbers), rtol=1e-5, atol=1e-5)


def test_large_numbers_saturate_as_they_do_in_pytorch() -> None:
    gates, weight, bias, state, starts = tensors_of("lstm", "small")
    for factor in (1e-4, 30.0, 1e4, 1e30):
        given = factor * gates, weight, bias, state, starts
        ours, theirs = recurrence._scan("lstm", *given), unrolled("lstm", *given)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_it_is_unrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "_library", lambda: None)
    scans: Any = recurrence._scan, unrolled
    given = tensors_of("gru", "small")
    assert torch.equal(*(scan("gru", *given) for scan in scans))
