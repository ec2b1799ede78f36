"""Our Adam and RMSprop against TensorFlow's in NumPy, and against PyTorch's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from ppo1_lightning.optimizers import TensorFlowAdam, TensorFlowRMSprop

STEPS = 50
EPSILON = 1e-2  # large, so that its place shows
SHAPES = [(3, 4), (4,), ()]


def learning_rate(t: int) -> float:
    return 1e-2 * (1 - t / STEPS)


def gradients(t: int) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(t)
    return [1e-2 * torch.randn(shape, generator=stream, dtype=torch.float64) for shape in SHAPES]


def new_parameters() -> list[torch.nn.Parameter]:
    stream = torch.Generator().manual_seed(1000)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=stream, dtype=torch.float64))
        for shape in SHAPES
    ]


def run(optimizer: torch.optim.Optimizer, steps: range = range(STEPS)) -> Any:
    (group,) = optimizer.param_groups
    for t in steps:
        group["lr"] = learning_rate(t)
        for parameter, gradient in zip(group["params"], gradients(t), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return flat(group["params"])


def flat(tensors: list[Any]) -> Any:
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def numpy_adam(style: str) -> Any:
    """Return the parameters after all steps: the original's Adam, or Kingma & Ba's algorithm 1."""
    theta = flat(new_parameters())
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t in range(STEPS):
        g = flat(gradients(t))
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        first, second = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
        if style == "tensorflow":
            step_size = learning_rate(t) * np.sqrt(second) / first
            theta = theta - step_size * m / (np.sqrt(v) + EPSILON)
        else:
            theta = theta - learning_rate(t) * (m / first) / (np.sqrt(v / second) + EPSILON)
    return theta


@pytest.mark.parametrize(
    ("style", "optimizer"), [("tensorflow", TensorFlowAdam), ("torch", torch.optim.Adam)]
)
def test_fifty_steps_equal_numpy(style: str, optimizer: type[torch.optim.Adam]):
    parameters = new_parameters()
    np.testing.assert_allclose(
        run(optimizer(parameters, lr=1.0, eps=EPSILON)), numpy_adam(style), rtol=0, atol=1e-12
    )


def test_the_two_styles_differ():
    difference = np.abs(numpy_adam("tensorflow") - numpy_adam("torch"))
    assert difference.max() > 1e-3


def test_torch_adam_beside_it_is_unaffected():
    ours, plain = (
        TensorFlowAdam(new_parameters(), eps=EPSILON),
        torch.optim.Adam(new_parameters(), eps=EPSILON),
    )
    for t in range(STEPS):
        run(ours, range(t, t + 1))
        run(plain, range(t, t + 1))
    np.testing.assert_allclose(
        flat(plain.param_groups[0]["params"]), numpy_adam("torch"), rtol=0, atol=1e-12
    )
    assert plain.param_groups[0]["eps"] == EPSILON
    assert torch.optim.Adam.step is not TensorFlowAdam.step


def test_state_dict_continues_the_run():
    whole = run(TensorFlowAdam(new_parameters(), eps=EPSILON))
    first = TensorFlowAdam(new_parameters(), eps=EPSILON)
    run(first, range(20))
    second = TensorFlowAdam(copy.deepcopy(first.param_groups[0]["params"]), eps=EPSILON)
    second.load_state_dict(first.state_dict())
    assert np.array_equal(run(second, range(20, STEPS)), whole)


def test_named_parameters_and_several_groups():
    parameters = new_parameters()
    groups = [
        {"params": [("a", parameters[0])]},
        {"params": [("b", parameters[1]), ("c", parameters[2])]},
    ]
    optimizer = TensorFlowAdam(groups, eps=EPSILON)
    for t in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(t)
        for parameter, gradient in zip(parameters, gradients(t), strict=True):
            parameter.grad = gradient
        optimizer.step()
    np.testing.assert_allclose(flat(parameters), numpy_adam("tensorflow"), rtol=0, atol=1e-12)


def test_closure_is_evaluated():
    optimizer = TensorFlowAdam(new_parameters())
    assert optimizer.step(lambda: 3.0) == 3.0


def test_rmsprop_is_tensorflows():
    """The mean square starts at 1 and epsilon is inside of the root, both unlike PyTorch's."""
    theta = flat(new_parameters())
    v = np.ones_like(theta)
    for t in range(STEPS):
        g = flat(gradients(t))
        v = 0.9 * v + 0.1 * g * g
        theta = theta - learning_rate(t) * g / np.sqrt(v + EPSILON)
    ours = run(TensorFlowRMSprop(new_parameters(), lr=1.0, alpha=0.9, eps=EPSILON))
    np.testing.assert_allclose(ours, theta, rtol=0, atol=1e-12)
    torchs = run(torch.optim.RMSprop(new_parameters(), lr=1.0, alpha=0.9, eps=EPSILON))
    assert np.abs(ours - torchs).max() > 1e-3


def test_rmsprop_continues_from_its_state():
    whole = run(TensorFlowRMSprop(new_parameters()))
    first = TensorFlowRMSprop(new_parameters())
    run(first, range(20))
    second = TensorFlowRMSprop(copy.deepcopy(first.param_groups[0]["params"]))
    second.load_state_dict(first.state_dict())
    assert np.array_equal(run(second, range(20, STEPS)), whole)
