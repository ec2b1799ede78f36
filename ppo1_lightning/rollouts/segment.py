"""A rollout as the learner sees it: rows in worker order, and the rows of every minibatch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppo1_lightning.distributed import all_sum


class Minibatch(NamedTuple):
    """This rank's rows of a minibatch, or of an epoch's minibatches with M in front of B."""

    observations: Tensor  # [B, *observation_shape]
    actions: Tensor  # [B, *action_shape]
    advantages: Tensor  # [B]
    returns: Tensor  # [B] value targets
    old_values: Tensor  # [B] of the policy that acted
    old_parameters: Tensor  # [B, P] action distribution before the update
    old_log_probs: Tensor  # [B]
    weights: Tensor  # [B] 1 / (valid rows of the minibatch on all ranks), 0 for invalid rows


class Segment(NamedTuple):
    """All rows of this rank, one worker's segment after the other: B = workers * rows_per_worker.

    Invalid rows stay where they are; their weight in a minibatch is 0.
    """

    observations: Tensor  # [B, *observation_shape]
    actions: Tensor  # [B, *action_shape]
    advantages: Tensor  # [B]
    returns: Tensor  # [B] value targets
    old_values: Tensor  # [B]
    old_parameters: Tensor  # [B, P]
    old_log_probs: Tensor  # [B]
    valid: Tensor  # [B] bool

    def as_minibatch(self, weights: Tensor) -> Minibatch:
        """Return all rows as one minibatch, with ``weights [B]``."""
        return Minibatch(*self[:-1], weights)

    def minibatches(self, rows: Tensor, weights: Tensor) -> Minibatch:
        """Gather the minibatches of one epoch: ``rows [M, B]``, ``weights [M, B]``."""

        def gather(field: Tensor) -> Tensor:
            # Copies whole rows, which takes a quarter of the time of `field[rows]`.
            return field.index_select(0, rows.flatten()).unflatten(0, rows.shape)

        return Minibatch._make([*map(gather, self[:-1]), weights])


def in_worker_order(rows: Tensor, num_workers: int) -> Tensor:
    """Reorder ``[T, N, ...]`` to ``[T * N, ...]``, one worker's environments after the other's.

    Within a worker, rows are in the order of time, then of environments.
    """
    num_steps, num_envs, *rest = rows.shape
    split = rows.reshape(num_steps, num_workers, num_envs // num_workers, *rest)
    return split.transpose(0, 1).reshape(num_steps * num_envs, *rest)


def shuffled_rows(
    num_orders: int,
    num_workers: int,
    rows_per_worker: int,
    worker_minibatch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw independent orders of every worker's rows, cut into minibatches.

    Returns:
        ``[num_orders, num_workers, minibatches, worker_minibatch_size]`` int64, indices into each
        worker's rows; a trailing partial minibatch is dropped.
    """
    keys = torch.rand(num_orders, num_workers, rows_per_worker, generator=generator)
    order = keys.argsort(-1)
    minibatches = rows_per_worker // worker_minibatch_size
    kept = order[..., : minibatches * worker_minibatch_size]
    return kept.unflatten(-1, (minibatches, worker_minibatch_size))


def minibatch_rows(order: Tensor, rows_per_worker: int) -> Tensor:
    """Turn indices into each worker's rows into indices into a `Segment`.

    Args:
        order: ``[E, W, M, b]``, as `shuffled_rows` returns for this rank's W workers.

    Returns:
        ``[E, M, W * b]``.
    """
    first = torch.arange(order.shape[1], device=order.device) * rows_per_worker
    return (order + first[:, None, None]).transpose(1, 2).flatten(2)


def minibatch_weights(valid: Tensor) -> Tensor:
    """Turn ``valid [E, M, B]`` into weights: 1 / valid rows of the minibatch on all ranks."""
    counts = all_sum(valid.sum(-1, dtype=torch.float32))
    return valid / counts.clamp(min=1).unsqueeze(-1)
