"""Advantages and value targets, as pure functions of a rollout."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppo1_lightning.distributed import all_sum

_ROUNDING = 1e-14
"""Share of the squared mean below which a variance is rounding, of float32 rows and its own."""


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap_truncation: bool,
) -> Tensor:
    """Generalised advantage estimation, equations 11 and 12 of Schulman et al. 2017.

        delta_t = r_t + gamma * V(s_{t+1}) * (1 - ends_t) - V(s_t)
        A_t = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}

    Computed in float64, as the original does (``ppo1/pposgd_simple.py``, ``add_vtarg_and_adv``).

    Args:
        rewards: r_t, ``[T, N]``.
        values: V(s_t) for t in 0..T, ``[T + 1, N]``. The row after an episode's end is the reset
            row, whose observation is the episode's final one: ``values[t + 1]`` is always
            V(next observation), also at a time limit.
        terminated, truncated: ``[T, N]`` bool, how the episode ended at t.
        valid: ``[T, N]`` bool, False for reset rows, whose advantage is 0.
        bootstrap_truncation: whether a truncated episode goes on in V; False takes a time limit
            as an end of the task, as the original does.

    Returns:
        ``[T, N]`` float32.
    """
    done = terminated | truncated
    ends = terminated if bootstrap_truncation else done
    values = values.double()
    deltas = rewards + gamma * values[1:] * ~ends - values[:-1]
    deltas = torch.where(valid, deltas, 0.0)
    decay = gamma * gae_lambda * (valid & ~done).double()
    return discounted_sums(deltas, decay).float()


def discounted_sums(terms: Tensor, decay: Tensor) -> Tensor:
    """Return x_t = terms_t + decay_t * x_{t+1}, x_T = 0, for ``[T, ...]`` each.

    By doubling: each pass adds to every row the sum of as many rows after it as it already holds.
    That takes log2(T) operations on all rows in place of T on one, each with its overhead.
    """
    sums, factors = terms, decay
    distance = 1
    while distance < len(terms):
        beyond = torch.zeros_like(terms[:distance])
        following, further = (torch.cat([x[distance:], beyond]) for x in (sums, factors))
        sums, factors = torch.addcmul(sums, factors, following), factors * further
        distance *= 2
    return sums


def standardize(
    advantages: Tensor,
    valid: Tensor,
    moments: Tensor,
    epsilon: float = 0.0,
    correction: int = 0,
) -> Tensor:
    """Return (A - mean) / (std + epsilon), 0 in invalid rows.

    Groups of fewer than two valid rows or without spread are centred only.

    Args:
        advantages, valid: ``[G, R]``, G groups standardised separately.
        moments: ``[G, 3]`` float64 of each whole group (`group_moments`, summed over ranks).
        correction: 0 for the population's std, 1 for the sample's.
    """
    mean, variance, flat = _spread(moments)
    count = moments[:, 0]
    variance = variance * count / (count - correction).clamp(min=1)
    scale = torch.where(flat, 1.0, 1.0 / (torch.where(flat, 1.0, variance).sqrt() + epsilon))
    result = (advantages.double() - mean[:, None]) * scale[:, None]
    return torch.where(valid, result, 0.0).float()


def standardize_segments(advantages: Tensor, valid: Tensor) -> Tensor:
    """Return (A - mean) / population std of each worker's segment, 0 in invalid rows: ``[W, R]``.

    With NumPy's float32 sums, as the originals do it (``pposgd_simple.py``, ``trpo_mpi.py``): what
    they round a mean by shifts all rows alike, which can be seen in a long step along the natural
    gradient. Segments of fewer than two valid rows or without spread are all 0.

    Args:
        advantages, valid: ``[W, R]``, whole segments.
    """
    result = np.zeros(advantages.shape, np.float32)
    flat = _spread(group_moments(advantages, valid))[2]
    fields = (advantages.cpu().numpy(), valid.cpu().numpy(), flat.tolist(), result)
    for numbers, its_valid, its_flat, out in zip(*fields, strict=True):
        if not its_flat:
            rows = numbers[its_valid]
            out[its_valid] = (rows - rows.mean()) / rows.std()
    return torch.from_numpy(result).to(advantages.device)


def _spread(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance of each group, and whether its spread is none: ``[G]`` each."""
    count, total, squares = moments.unbind(-1)
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    return mean, variance, (count < 2) | (variance <= _ROUNDING * mean.square())


def group_moments(advantages: Tensor, valid: Tensor) -> Tensor:
    """Return count, sum and sum of squares of each group's valid rows: ``[G, R] -> [G, 3]``."""
    kept = torch.where(valid, advantages, 0.0).double()
    return torch.stack([valid.sum(-1).double(), kept.sum(-1), kept.square().sum(-1)], -1)


def explained_variance(returns: Tensor, values: Tensor, valid: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over the valid rows of all ranks.

    NaN where the returns do not vary (``common/math_util.py``). Arguments are ``[B]``.
    """
    stacked = torch.stack([returns, returns - values])
    moments = all_sum(group_moments(stacked, valid.expand_as(stacked)))
    count, total, squares = moments.unbind(-1)
    means = total / count
    of_returns, of_residuals = (squares / count - means.square()).tolist()
    varies = of_returns > _ROUNDING * means[0].item() ** 2
    return 1 - of_residuals / of_returns if varies else float("nan")
