"""The steps of TRPO against dense linear algebra and functions with a known answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppo1_lightning.functional.trust_region import (
    conjugate_gradient,
    line_search,
    step_to_boundary,
)


def system(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a positive definite matrix whose eigenvalues are 1..size, and a right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(square).Q
    eigenvalues = torch.arange(1, size + 1, dtype=torch.float64)
    return q * eigenvalues @ q.T, torch.randn(size, generator=generator, dtype=torch.float64)


def counted(a: Tensor) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Return products with ``a``, and the list of what was multiplied so far."""
    seen: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        seen.append(vector)
        return a @ vector

    return product, seen


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_conjugate_gradients_solve_a_dense_system(size: int) -> None:
    a, b = system(size)
    product, seen = counted(a)
    x = conjugate_gradient(product, b, 2 * size, tolerance=1e-20)
    torch.testing.assert_close(x, torch.linalg.solve(a, b))
    # In exact arithmetic it takes no more steps than there are dimensions.
    assert len(seen) <= size + 1


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_few_iterations_give_the_best_of_the_krylov_space(iterations: int) -> None:
    """Of all x in span(b, A b, A^2 b, ...), the one with the least error in the norm of A."""
    a, b = system(8)
    powers = [torch.linalg.matrix_power(a, k) @ b for k in range(iterations)]
    basis = torch.linalg.qr(torch.stack(powers, 1)).Q
    best = basis @ torch.linalg.solve(basis.T @ a @ basis, basis.T @ b)
    torch.testing.assert_close(conjugate_gradient(lambda p: a @ p, b, iterations), best)


def test_conjugate_gradients_end_when_the_squared_residual_is_small() -> None:
    a, b = system(6)
    squares = [
        (b - a @ conjugate_gradient(lambda p: a @ p, b, n, tolerance=0.0)).square().sum().item()
        for n in range(1, 6)
    ]
    assert squares == sorted(squares, reverse=True)
    for steps, square in enumerate(squares, 1):
        product, seen = counted(a)
        conjugate_gradient(product, b, 6, tolerance=1.01 * square)
        assert len(seen) == steps


def test_conjugate_gradients_leave_their_arguments_alone() -> None:
    a, b = system(4)
    before = b.clone()
    conjugate_gradient(lambda p: a @ p, b, 3)
    assert torch.equal(b, before)


def test_step_reaches_the_boundary() -> None:
    fisher, gradient = system(5)
    direction = torch.linalg.solve(fisher, gradient)
    step = step_to_boundary(direction, fisher @ direction, 0.01)
    torch.testing.assert_close((0.5 * step @ fisher @ step).item(), 0.01)
    torch.testing.assert_close(step / step.norm(), direction / direction.norm())


def test_step_of_one_dimension() -> None:
    # KL = 8 / 2 s^2 = 1 at s = 1 / 2, on the side that the direction says.
    step = step_to_boundary(torch.tensor([-3.0]), torch.tensor([-24.0]), 1.0)
    torch.testing.assert_close(step, torch.tensor([-0.5]))


@pytest.mark.parametrize("curvature", [0.0, -1.0])
def test_step_without_curvature_is_not_finite(curvature: float) -> None:
    assert not step_to_boundary(torch.ones(1), torch.tensor([curvature]), 1.0).isfinite()


def parabola(full_step: float, *, mass: float = 0.0) -> Callable[[float], tuple[float, float]]:
    """Return objective x - x^2, zero at 0 and 1, and KL mass * x^2 / 2, at x = factor * step."""

    def evaluate(factor: float) -> tuple[float, float]:
        x = factor * full_step
        return x - x * x, mass * x * x / 2

    return evaluate


@pytest.mark.parametrize(
    ("full_step", "factor"),
    [(0.5, 1.0), (1.0, 1.0), (1.01, 0.5), (2.0, 0.5), (2.5, 0.25), (8.0, 1 / 8), (-1.0, 0.0)],
)
def test_line_search_ends_where_the_objective_is_not_below(full_step: float, factor: float) -> None:
    assert line_search(parabola(full_step), 0.0, math.inf) == factor


def test_line_search_compares_with_the_objective_before() -> None:
    # x - x^2 > 0.2 between 0.2764 and 0.7236
    assert line_search(parabola(3.0), 0.2, math.inf) == 0.125
    assert line_search(parabola(2.0), 0.2, math.inf) == 0.25
    assert line_search(parabola(0.27), 0.2, math.inf) == 0.0


@pytest.mark.parametrize(
    ("max_kl", "slack", "factor"),
    [(0.5, 1.0, 1.0), (0.49, 1.0, 0.5), (0.125, 1.0, 0.5), (1 / 3, 1.5, 1.0), (0.33, 1.5, 0.5)],
)
def test_line_search_ends_inside_of_the_trust_region(
    max_kl: float, slack: float, factor: float
) -> None:
    # KL = 1/2, 1/8, ... at the factors 1, 1/2, ...
    assert line_search(parabola(1.0, mass=1.0), 0.0, max_kl, slack=slack) == factor


def test_slack_of_the_original() -> None:
    assert line_search(lambda factor: (1.0, 0.015), 0.0, 0.01) == 1.0
    assert line_search(lambda factor: (1.0, 0.01501), 0.0, 0.01) == 0.0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_line_search_goes_past_what_is_not_finite(number: float, place: int) -> None:
    def evaluate(factor: float) -> tuple[float, float]:
        good = (1.0, 0.0)
        if factor > 0.25:
            good = (number, 0.0) if place == 0 else (1.0, number)
        return good

    assert line_search(evaluate, 0.0, 1.0) == 0.25


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_line_search_tries_halves_and_gives_up(steps: int) -> None:
    tried: list[float] = []

    def evaluate(factor: float) -> tuple[float, float]:
        tried.append(factor)
        return -1.0, 0.0

    assert line_search(evaluate, 0.0, 1.0, steps=steps) == 0.0
    assert tried == [2.0**-k for k in range(steps)]


def test_line_search_tries_ten_factors() -> None:
    tried: list[float] = []
    line_search(lambda factor: (tried.append(factor) or -1.0, 0.0), 0.0, 1.0)
    assert len(tried) == 10
