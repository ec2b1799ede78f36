"""The steps of trust region policy optimisation that are mathematics of vectors.

Those that decide something decide alike on all ranks as long as what they are given is alike: sums
over ranks, and vectors made of such sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve A x = b for a positive definite A of which only products are known.

    Hestenes and Stiefel's method from x = 0, as in baselines' ``common/cg.py``:

        alpha = |r|^2 / (p . A p);  x += alpha p;  r' = r - alpha A p
        p = r' + |r'|^2 / |r|^2 p

    Args:
        product: from p ``[P]`` to A p ``[P]``.
        b: ``[P]``, not all zeros (then alpha is 0 / 0).
        iterations: products at most.
        tolerance: the squared residual \\|r\\|^2 below which it ends before.

    Returns:
        x, ``[P]``.
    """
    x, residual, p = torch.zeros_like(b), b, b
    square = residual @ residual
    for _ in range(iterations):
        z = product(p)
        alpha = square / (p @ z)
        x, residual = x + alpha * p, residual - alpha * z
        square, before = residual @ residual, square
        if square < tolerance:
            break
        p = residual + square / before * p
    return x


def step_to_boundary(direction: Tensor, curvature: Tensor, max_kl: float) -> Tensor:
    """Return the longest step s along a direction d that keeps the quadratic model of the KL.

        s = d / sqrt(d . F d / (2 max_kl)),  so that  s . F s / 2 = max_kl

    Schulman et al. 2015, appendix C (there beta); ``trpo_mpi/trpo_mpi.py`` has its inverse, ``lm``.

    Args:
        direction: d, ``[P]``.
        curvature: F d, ``[P]``.
        max_kl: delta of the paper, in nats.

    Returns:
        ``[P]``, not finite where d . F d is not positive.
    """
    return direction / (0.5 * (direction @ curvature) / max_kl).sqrt()


def line_search(
    evaluate: Callable[[float], tuple[float, float]],
    objective: float,
    max_kl: float,
    *,
    steps: int = 10,
    slack: float = 1.5,
) -> float:
    """Return the first of the factors 1, 1/2, 1/4, ... of a step that is good, 0.0 for none.

    Good is what improves the objective, or leaves it as it is, at a KL of at most ``slack *
    max_kl``; neither may be infinite or NaN (``trpo_mpi/trpo_mpi.py``, where 1.5 is fixed).

    Args:
        evaluate: from a factor to (objective, KL) there, over all ranks. It is called with the
            returned factor last, unless that is 0.0.
        objective: at factor 0, the larger the better.
        max_kl: in nats.
        steps: factors that are tried.
        slack: the KL's quadratic model is not exact.
    """
    for k in range(steps):
        factor = 0.5**k
        reached, kl = evaluate(factor)
        finite = math.isfinite(reached) and math.isfinite(kl)
        if finite and kl <= slack * max_kl and reached >= objective:
            return factor
    return 0.0
