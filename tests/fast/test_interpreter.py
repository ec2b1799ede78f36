"""A graph by TorchScript's interpreter is the graph, or is not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit import _state

from ppo1_lightning.fast import interpreter
from ppo1_lightning.fast.graphs import Graph
from ppo1_lightning.fast.interpreter import interpreted


def step(weight: Tensor, rows: Tensor, mask: Tensor, loss: Tensor) -> None:
    """Write into two arguments, by scalars that are no tensors and by a 0-dimensional one."""
    error = torch.tanh(rows @ weight).masked_fill(mask, -1e9).clamp(min=-2) * 0.3
    loss.copy_(error.square().mean() * 0.1 + 1 / 3)
    weight.sub_(0.5 * (rows.t() @ error) * (loss * 0.7))


def example() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(4, 3, generator=generator), torch.randn(8, 4, generator=generator)
    rows[0, 1] = 0
    return [weight, rows, torch.arange(24).reshape(8, 3) % 5 == 0, torch.zeros(())]


def traced() -> GraphModule:
    return make_fx(lambda *tensors: step(*tensors) or ())(*example())


def test_it_is_the_same_to_the_bit_and_its_example_stays() -> None:
    arguments, expected = example(), example()
    script = interpreted(traced(), arguments)
    assert script is not None
    assert all(map(torch.equal, arguments, expected))
    for _ in range(3):
        script(*arguments)
        step(*expected)
        assert all(map(torch.equal, arguments, expected))
    assert [tensor.dtype for tensor in arguments] == [tensor.dtype for tensor in example()]


def test_numbers_that_are_none_are_the_same() -> None:
    arguments = example()
    arguments[1][0, 0] = torch.nan
    assert interpreted(traced(), arguments) is not None


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("TorchScript is gone")


def round_more(*_: Any, **__: Any) -> Any:
    def off_by_a_bit(*arguments: Tensor) -> None:
        step(*arguments)
        arguments[0][0, 0] = torch.nextafter(arguments[0][0, 0], torch.tensor(9.0))

    return off_by_a_bit


def negate_zero(*_: Any, **__: Any) -> Any:
    def with_another_zero(*arguments: Tensor) -> None:
        step(*arguments)
        arguments[1][0, 1] = -0.0

    return with_another_zero


@pytest.mark.parametrize("script", [refuse, round_more, negate_zero])
def test_python_calls_operators_where_it_is_not(script: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(interpreter, "_script", script)
    assert interpreted(traced(), example()) is None
    graph = Graph(step, compiled=False)
    (weight, rows, mask, loss), expected = example(), example()
    with torch.inference_mode():
        graph.bind([weight], [rows[None], mask[None], loss[None]])(0, 1)
        step(*expected)
    assert graph.needs_python
    assert torch.equal(weight, expected[0])


def test_it_goes_with_what_holds_it() -> None:
    functions: Any = vars(_state)["_python_cu"].get_functions
    graphs = len(functions())
    script = interpreted(traced(), example())
    assert script is not None
    assert len(functions()) == graphs


def test_a_traced_graph_needs_no_python() -> None:
    graph = Graph(step, compiled=False)
    weight, *rows = example()
    with torch.inference_mode():
        graph.bind([weight], [row[None] for row in rows])
    assert not graph.needs_python
