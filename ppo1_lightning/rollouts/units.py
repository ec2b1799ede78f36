"""Units of shuffling: which rows of a rollout are one, and in which order they are learned from.

A unit is L rows of one environment, a single row for a policy without memory. A segment has them as
``[L * U]``: the first rows of all units, then the second ones, and so on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def in_units(rows: Tensor, mpi_workers: int, length: int) -> Tensor:
    """Reorder ``[T, N, ...]`` to units of L rows, ``[L * U, ...]`` as a `Segment` has them."""
    num_steps, num_envs, *rest = rows.shape
    blocks, envs = num_steps // length, num_envs // mpi_workers
    split = rows.reshape(blocks, length, mpi_workers, envs, *rest)
    return split.permute(1, 2, 0, 3, *range(4, split.ndim)).reshape(num_steps * num_envs, *rest)


def by_worker(rows: Tensor, mpi_workers: int, length: int) -> Tensor:
    """Return ``[L * U]`` as ``[W, rows of a worker]``."""
    return rows.view(length, mpi_workers, -1).transpose(0, 1).flatten(1)


def from_workers(rows: Tensor, length: int) -> Tensor:
    """Undo `by_worker`."""
    return rows.unflatten(1, (length, -1)).transpose(0, 1).flatten()


def shuffled_units(
    num_orders: int,
    mpi_workers: int,
    units_per_worker: int,
    worker_minibatch_units: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw independent orders of every worker's units, cut into minibatches.

    Returns:
        ``[num_orders, mpi_workers, minibatches, worker_minibatch_units]`` int64, indices into each
        worker's units; a trailing partial minibatch is dropped.
    """
    keys = torch.rand(num_orders, mpi_workers, units_per_worker, generator=generator)
    order = keys.argsort(-1)
    minibatches = units_per_worker // worker_minibatch_units
    kept = order[..., : minibatches * worker_minibatch_units]
    return kept.unflatten(-1, (minibatches, worker_minibatch_units))


def minibatch_units(order: Tensor, units_per_worker: int) -> Tensor:
    """Turn indices into each worker's units into indices into a `Segment`'s.

    Args:
        order: ``[E, W, M, u]``, as `shuffled_units` returns for this rank's W workers.

    Returns:
        ``[E, M, W * u]``.
    """
    first = torch.arange(order.shape[1], device=order.device) * units_per_worker
    return (order + first[:, None, None]).transpose(1, 2).flatten(2)


def rows_of_units(units: Tensor, length: int, num_units: int) -> Tensor:
    """Return the rows ``[..., L * u]`` of some of a segment's units ``[..., u]``."""
    first = torch.arange(length, device=units.device) * num_units
    return (units.unsqueeze(-2) + first[:, None]).flatten(-2)
