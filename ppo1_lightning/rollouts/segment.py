"""A rollout as the learner sees it: rows in worker order, and the rows of every minibatch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ppo1_lightning.distributed import all_gather, all_sum, rank, world_size
from ppo1_lightning.functional.advantages import group_moments, standardize_segments
from ppo1_lightning.functional.advantages import standardize as standardize_rows
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.sizes import Sizes

_log = logging.getLogger(__name__)

Standardize = Literal["worker", "rollout", "minibatch", "minibatch_sample", "none"]
"""Over which rows, of all ranks, advantages are standardised: those of each worker, all, or those
of each minibatch, with 1e-8 added to the deviation, the population's (ppo2) or the sample's with
n - 1 (Stable-Baselines3)."""


class Minibatch(NamedTuple):
    """This rank's rows of a minibatch, or of an epoch's minibatches with M in front of B."""

    observations: Tensor  # [B, *observation_shape]
    actions: Tensor  # [B, *action_shape]
    advantages: Tensor  # [B]
    returns: Tensor  # [B] value targets
    old_values: Tensor  # [B] of the policy that acted
    old_dist_params: Tensor  # [B, P] action distribution before the update
    old_log_probs: Tensor  # [B]
    weights: Tensor  # [B] 1 / (valid rows of the minibatch on all ranks), 0 for invalid rows


GATHERED_BYTES = 32 * 2**20
"""Bytes of observations up to which minibatches of several epochs are gathered at once."""


class Segment(NamedTuple):
    """All rows of this rank, one worker's segment after the other: B = workers * rows_per_worker.

    Where ranks share environments, all of them have the rows of all, and each its own rows of the
    minibatches: means over B are the same on every rank, and so their mean over ranks is.

    Invalid rows stay where they are; their weight in a minibatch is 0. The minibatches are drawn
    beforehand: those of E passes, and of one more over which losses are measured.
    """

    observations: Tensor  # [B, *observation_shape]
    actions: Tensor  # [B, *action_shape]
    advantages: Tensor  # [B]
    returns: Tensor  # [B] value targets
    old_values: Tensor  # [B]
    old_dist_params: Tensor  # [B, P]
    old_log_probs: Tensor  # [B]
    valid: Tensor  # [B] bool
    rows: Tensor  # [E + 1, M, b] int64, the rows of every minibatch
    row_weights: Tensor  # [E + 1, M, b], see `Minibatch`
    row_advantages: Tensor  # [E + 1, M, b]
    rows_per_worker: int

    def epochs(self, *, one_by_one: bool = False) -> Iterator[Minibatch]:
        """Yield each pass's minibatches ``[M, b, ...]``, or those of several passes at once.

        Few large copies take less time than many small ones.
        """
        passes = len(self.rows) - 1
        at_once = 1 if one_by_one else max(1, GATHERED_BYTES // self.observations.nbytes)
        for first in range(0, passes, at_once):
            yield self._gathered(slice(first, min(first + at_once, passes)), slice(None))

    def first_minibatch(self) -> Minibatch:
        """Return the first minibatch, ``[b, ...]``."""
        gathered = self._gathered(slice(0, 1), slice(0, 1))
        return Minibatch(*(field[0] for field in gathered))

    def _gathered(self, passes: slice, minibatches: slice) -> Minibatch:
        rows, weights, advantages = (
            field[passes, minibatches].flatten(0, 1)
            for field in (self.rows, self.row_weights, self.row_advantages)
        )

        def gather(field: Tensor) -> Tensor:
            # Copies whole rows, which takes a quarter of the time of `field[rows]`.
            return field.index_select(0, rows.flatten()).unflatten(0, rows.shape)

        return Minibatch(
            observations=gather(self.observations),
            actions=gather(self.actions),
            advantages=advantages,
            returns=gather(self.returns),
            old_values=gather(self.old_values),
            old_dist_params=gather(self.old_dist_params),
            old_log_probs=gather(self.old_log_probs),
            weights=weights,
        )

    def whole(self) -> Minibatch:
        """Return all rows as one minibatch ``[B, ...]``."""
        return Minibatch(*self[:7], weights=minibatch_weights(self.valid))

    def every(self, n: int) -> Minibatch:
        """Return the first row of each worker's segment, and every n-th after it, as a minibatch.

        Whether a row is taken does not depend on the devices.
        """
        rows = torch.arange(len(self.valid), device=self.valid.device)
        rows = rows.view(-1, self.rows_per_worker)[:, ::n].flatten()
        fields = (field[rows] for field in self[:7])
        return Minibatch(*fields, weights=minibatch_weights(self.valid[rows]))

    def last_pass(self) -> Minibatch:
        """Return all rows, weighted as in the mean of the last pass's minibatches' means.

        Weights are float64.
        """
        rows = self.rows[-1]
        share = self.row_weights[-1].double() / len(rows)
        weights = torch.zeros_like(self.returns, dtype=torch.float64).index_put((rows,), share)
        advantages = self.advantages.index_put((rows,), self.row_advantages[-1])
        return Minibatch(*self[:7], weights=weights)._replace(advantages=advantages)


def gather(rollout: Rollout, *estimates: Tensor) -> tuple[Rollout, *tuple[Tensor, ...]]:
    """Return the rollout of all ranks' environments, and estimates ``[T, N]``, on every rank."""

    def whole(field: Tensor) -> Tensor:
        numbers = field.byte() if field.dtype == torch.bool else field  # which gloo can send
        return all_gather(numbers, dim=1)[:, : rollout.num_envs].to(field.dtype)

    names = ("observations", "actions", "values", "dist_params", "valid")
    fields = {name: whole(getattr(rollout, name)) for name in names}
    return rollout._replace(**fields), *map(whole, estimates)


def tell_cost(rollout: Rollout, sizes: Sizes) -> None:
    """Measure what it costs that devices share environments, and say it. Every rank calls it."""
    started = time.perf_counter()
    whole, *_ = gather(rollout)
    milliseconds = 1000 * (time.perf_counter() - started)
    _log.info(
        "%d devices share %d environment%s: each has the whole rollout, gathered once an iteration "
        "(%.1f MB of observations, %.1f ms), and takes %d of a minibatch's %d rows",
        *(sizes.devices, sizes.num_envs, "s" if sizes.num_envs > 1 else ""),
        *(whole.observations.nbytes / 2**20, milliseconds),
        *(-(-sizes.minibatch_size // sizes.devices), sizes.minibatch_size),
    )


def lay_out(
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    *,
    sizes: Sizes,
    order: Tensor,
    standardize: Standardize,
    distribution: Distribution,
    evaluate: Callable[[Tensor], Tensor] | None,
) -> Segment:
    """Lay out a rollout as the learner sees it.

    Args:
        advantages, returns: ``[T, N]``.
        order: ``[E + 1, W, M, b]``, see `shuffled_rows`.
        standardize: the advantages.
        evaluate: from observations ``[B, ...]`` to what the old policy says now, ``[B, P]``; None
            where that is what it said while it acted.
    """
    if sizes.shared:
        rollout, advantages, returns = gather(rollout, advantages, returns)
    workers = sizes.workers_per_device
    valid = in_worker_order(rollout.valid, workers)
    rows = minibatch_rows(order, sizes.rows_per_worker)
    if sizes.shared:
        rows = rows.tensor_split(world_size(), -1)[rank()]
    flat = in_worker_order(advantages, workers)
    if standardize == "worker":
        flat = standardize_segments(flat.view(workers, -1), valid.view(workers, -1)).flatten()
    elif standardize == "rollout":
        flat = _standardized(flat, valid, 1)
    row_advantages = flat[rows]
    if standardize in ("minibatch", "minibatch_sample"):
        count, sample = len(rows) * rows.shape[1], standardize == "minibatch_sample"
        row_advantages = _standardized(
            row_advantages, valid[rows], count, epsilon=1e-8, correction=int(sample)
        )
    observations = in_worker_order(rollout.observations, workers)
    actions = in_worker_order(rollout.actions, workers)
    if evaluate is None:
        dist_params = in_worker_order(rollout.dist_params, workers)
    else:
        dist_params = evaluate(observations)
    return Segment(
        observations=observations,
        actions=actions,
        advantages=flat,
        returns=in_worker_order(returns, workers),
        old_values=in_worker_order(rollout.values[:-1], workers),
        old_dist_params=dist_params,
        old_log_probs=distribution.log_prob(dist_params, actions),
        valid=valid,
        rows=rows,
        row_weights=minibatch_weights(valid[rows]),
        row_advantages=row_advantages,
        rows_per_worker=sizes.rows_per_worker,
    )


def _standardized(
    advantages: Tensor, valid: Tensor, groups: int, epsilon: float = 0.0, correction: int = 0
) -> Tensor:
    """Standardise each of as many equal groups of rows, which go on on the other ranks."""
    rows, its_valid = advantages.reshape(groups, -1), valid.reshape(groups, -1)
    moments = all_sum(group_moments(rows, its_valid))
    return standardize_rows(rows, its_valid, moments, epsilon, correction).view_as(advantages)


def in_worker_order(rows: Tensor, mpi_workers: int) -> Tensor:
    """Reorder ``[T, N, ...]`` to ``[T * N, ...]``, one worker's environments after the other's.

    Within a worker, rows are in the order of time, then of environments.
    """
    num_steps, num_envs, *rest = rows.shape
    split = rows.reshape(num_steps, mpi_workers, num_envs // mpi_workers, *rest)
    return split.transpose(0, 1).reshape(num_steps * num_envs, *rest)


def shuffled_rows(
    num_orders: int,
    mpi_workers: int,
    rows_per_worker: int,
    worker_minibatch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw independent orders of every worker's rows, cut into minibatches.

    Returns:
        ``[num_orders, mpi_workers, minibatches, worker_minibatch_size]`` int64, indices into each
        worker's rows; a trailing partial minibatch is dropped.
    """
    keys = torch.rand(num_orders, mpi_workers, rows_per_worker, generator=generator)
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
    """Turn ``valid [..., B]`` into weights: 1 / valid rows of the minibatch on all ranks."""
    counts = all_sum(valid.sum(-1, dtype=torch.float32))
    return valid / counts.clamp(min=1).unsqueeze(-1)
