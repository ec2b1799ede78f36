"""Our Adam and RMSprop against TensorFlow's in NumPy, and against PyTorch's."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.optimizers import (
    TensorFlowAdam,
    TensorFlowRMSprop,
    clip_factor,
    make_optimizer,
    step_sizes,
)

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


def test_constants_in_float32():
    """``tf.train.AdamOptimizer``, whose every number is float32, also the powers of beta."""
    one, beta1, beta2 = np.float32(1), np.float32(0.9), np.float32(0.999)
    theta, m, v = (np.float32(x) for x in (0.5, 0, 0))
    power1, power2, learning_rates = beta1, beta2, np.float32(1e-3)
    parameter = torch.nn.Parameter(torch.tensor([0.5]))
    optimizer = TensorFlowAdam([parameter], lr=1e-3, eps=1e-5, float32_constants=True)
    plain = TensorFlowAdam([torch.nn.Parameter(torch.tensor([0.5]))], lr=1e-3, eps=1e-5)
    assert one - beta2 == np.float32(0.00099998713)
    apart = []
    for t in range(1, 200):
        g = np.float32(1e-4 * np.sin(t))
        step_size = learning_rates * np.sqrt(one - power2) / (one - power1)
        assert step_sizes(optimizer.param_groups[0], np.array([t])) == step_size
        m = m + (g - m) * (one - beta1)
        v = v + (g * g - v) * (one - beta2)
        theta = theta - step_size * m / (np.sqrt(v) + np.float32(1e-5))
        power1, power2 = power1 * beta1, power2 * beta2
        for each in (optimizer, plain):
            each.param_groups[0]["params"][0].grad = torch.tensor([g])
            each.step()
        assert optimizer.state[parameter]["exp_avg_sq"].item() == pytest.approx(v, rel=1e-6)
        assert parameter.item() == pytest.approx(theta, abs=1e-7)
        apart.append(plain.state[plain.param_groups[0]["params"][0]]["exp_avg_sq"].item() / v - 1)
    assert apart[0] == pytest.approx(1.287e-5, rel=1e-2)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["betas"]) == (1e-3, 1e-5, (0.9, 0.999))


def test_float32_corrections_end_at_one():
    group = {"lr": 1.0, "betas": (0.9, 0.999), "float32_constants": True}
    late = step_sizes(group, np.array([10**5, 10**9]))
    assert late.tolist() == [1.0, 1.0]


def test_a_gradient_of_many_numbers_is_clipped_by_its_norm():
    gradients = [torch.randn(512, 3136, generator=torch.Generator().manual_seed(0)), torch.ones(3)]
    norm = np.sqrt(sum((g.double().numpy() ** 2).sum() for g in gradients))
    assert clip_factor(gradients, 0.5).item() == pytest.approx(0.5 / norm, rel=1e-6)
    assert clip_factor(gradients, 2 * norm).item() == 1.0


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


class Adan(torch.optim.SGD):
    """Three betas, and a step that says that it was taken."""

    steps: ClassVar[list[float]] = []

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.param_groups[0]["betas"] = (0.98, 0.92, 0.99)

    def step(self, closure: Any = None) -> Any:
        self.steps.append(sum(p.sum().item() for p in self.param_groups[0]["params"]))
        return super().step(closure)


def test_an_optimizer_of_the_users_is_tried_on_copies():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimizer = make_optimizer(Adan, [("a", parameters[0])], 0.1)
    assert Adan.steps == [3.0]
    assert optimizer.param_groups[0]["params"][0] is parameters[0]
    assert parameters[0].grad is None
    assert not optimizer.state


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (lambda parameters, lr: None, "<lambda> returns a NoneType"),
        (lambda parameters, lr: ([torch.optim.SGD(parameters, lr)], []), "returns a tuple"),
        (partial(torch.optim.Adam, fused=True, foreach=True), "Adam cannot be made: `fused`"),
        (
            partial(cast(Any, torch.optim.Adam), betas=(0.9,) * 3),
            "Adam takes no step: too many values",
        ),
        (torch.optim.SparseAdam, "SparseAdam takes no step: .*dense gradients"),
    ],
)
def test_what_makes_no_optimizer_is_told(factory: Any, said: str):
    with pytest.raises(ConfigurationError, match=f"optimizer: .*{said}"):
        make_optimizer(factory, [("a", torch.nn.Parameter(torch.ones(3)))], 0.1)
