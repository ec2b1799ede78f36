"""A rollout as the learner sees it: rows in worker order, and the rows of every minibatch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ppo1_lightning.distributed import all_sum
from ppo1_lightning.functional.advantages import group_moments, standardize_segments
from ppo1_lightning.functional.advantages import standardize as standardize_rows
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.sharing import gather, own_units
from ppo1_lightning.rollouts.sizes import Sizes
from ppo1_lightning.rollouts.units import (
    by_worker,
    from_workers,
    in_units,
    minibatch_units,
    rows_of_units,
)

Standardize = Literal["worker", "rollout", "minibatch", "minibatch_sample", "none"]
"""Over which rows, of all ranks, advantages are standardised: those of each worker, all, or those
of each minibatch, with 1e-8 added to the deviation, the population's (ppo2) or the sample's with
n - 1 (Stable-Baselines3)."""


class Minibatch(NamedTuple):
    """This rank's rows of a minibatch, or of an epoch's minibatches with M in front of B.

    For a policy with memory they are U units of L rows each, B = L * U in the order of time; else
    a unit is a row, and S = 0.
    """

    observations: Tensor  # [B, *observation_shape]
    actions: Tensor  # [B, *action_shape]
    advantages: Tensor  # [B]
    returns: Tensor  # [B] value targets
    old_values: Tensor  # [B] of the policy that acted
    old_dist_params: Tensor  # [B, P] action distribution before the update
    old_log_probs: Tensor  # [B]
    weights: Tensor  # [B] 1 / (valid rows of the minibatch on all ranks), 0 for invalid rows
    starts: Tensor  # [B] bool: an episode begins
    state: Tensor  # [U, S] before each unit's first row, as it was in the rollout

    def as_one(self) -> Minibatch:
        """Return an epoch's minibatches as a single one, whose weights sum up to M."""
        length = self.weights.shape[1] // self.state.shape[1]

        def joined(field: Tensor) -> Tensor:
            return field.unflatten(1, (length, -1)).transpose(0, 1).flatten(0, 2)

        return Minibatch(*map(joined, self[:-1]), state=self.state.flatten(0, 1))


GATHERED_BYTES = 32 * 2**20
"""Bytes of observations up to which minibatches of several epochs are gathered at once."""


class Segment(NamedTuple):
    """All rows of this rank as U units of L rows each, B = L * U in the order of time.

    Units are in the order of workers, then of time, then of environments; for a policy without
    memory a unit is a row.

    Where ranks share environments (``shared``), all of them have the rows of all, and each its own
    rows of every minibatch: means over B are the same on every rank, and so their mean over ranks
    is.

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
    starts: Tensor  # [B] bool
    state: Tensor  # [U, S]
    rows: Tensor  # [E + 1, M, b] int64, the rows of every minibatch
    row_weights: Tensor  # [E + 1, M, b], see `Minibatch`
    row_advantages: Tensor  # [E + 1, M, b]
    units_per_worker: int
    shared: bool = False

    def minibatches(self, *, pass_by_pass: bool = False) -> Iterator[Minibatch]:
        """Yield the minibatches of all passes, in order and behind one another ``[M, b, ...]``.

        As many passes at once as GATHERED_BYTES allows: few large copies take less time than many
        small ones. What is done after each pass asks for them ``pass_by_pass``.
        """
        passes = len(self.rows) - 1
        at_once = 1 if pass_by_pass else max(1, GATHERED_BYTES // self.observations.nbytes)
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

        units = rows[:, : rows.shape[1] // self.length]  # a unit's first row has its number
        return Minibatch(
            observations=gather(self.observations),
            actions=gather(self.actions),
            advantages=advantages,
            returns=gather(self.returns),
            old_values=gather(self.old_values),
            old_dist_params=gather(self.old_dist_params),
            old_log_probs=gather(self.old_log_probs),
            weights=weights,
            starts=gather(self.starts),
            state=self.state.index_select(0, units.flatten()).unflatten(0, units.shape),
        )

    @property
    def length(self) -> int:
        """L, rows of a unit."""
        return len(self.valid) // len(self.state)

    def whole(self) -> Minibatch:
        """Return all rows as one minibatch ``[B, ...]``: this rank's share of them."""
        if self.shared:
            return self.every(1)
        return Minibatch(*self[:7], minibatch_weights(self.valid), self.starts, self.state)

    def every(self, n: int) -> Minibatch:
        """Return the first unit of each worker's segment, and every n-th after it, as a minibatch.

        Whether a unit is taken does not depend on the devices; of shared ones a rank has its share.
        """
        units = torch.arange(len(self.state), device=self.valid.device)
        units = units.view(-1, self.units_per_worker)[:, ::n].flatten()
        units, are_own = own_units(units) if self.shared else (units, True)
        rows = rows_of_units(units, self.length, len(self.state))
        own = {name: getattr(self, name)[rows] for name in (*Segment._fields[:7], "starts")}
        weights = minibatch_weights(self.valid[rows] & are_own)
        return Minibatch(**own, weights=weights, state=self.state[units])

    def last_pass(self) -> Minibatch:
        """Return all rows, weighted as in the mean of the last pass's minibatches' means.

        Weights are float64.
        """
        rows = self.rows[-1]
        share = self.row_weights[-1].double() / len(rows)
        weights = torch.zeros_like(self.returns, dtype=torch.float64).index_put((rows,), share)
        advantages = self.advantages.index_put((rows,), self.row_advantages[-1])
        batch = Minibatch(*self[:7], weights, self.starts, self.state)
        return batch._replace(advantages=advantages)


def lay_out(
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    *,
    sizes: Sizes,
    order: Tensor,
    standardize: Standardize,
    distribution: Distribution,
    evaluate: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
) -> Segment:
    """Lay out a rollout as the learner sees it.

    Args:
        advantages, returns: ``[T, N]``.
        order: ``[E + 1, W, M, u]``, see `shuffled_units`.
        standardize: the advantages.
        evaluate: from observations ``[B, ...]``, state and starts to what the old policy says now,
            ``[B, P]``; None where that is what it said while it acted.
    """
    workers, length = sizes.workers_per_device, sizes.sequence_length
    if rollout.states is not None:  # of which only those before each unit are learned from
        rollout = rollout._replace(states=rollout.states[:-1:length])
    if sizes.shared:
        rollout, advantages, returns = gather(rollout, advantages, returns)
    states, starts = _memory_of(rollout)

    def laid_out(field: Tensor) -> Tensor:
        return in_units(field, workers, length)

    state = in_units(states, workers, 1)
    valid = laid_out(rollout.valid)
    units = minibatch_units(order, sizes.units_per_worker)
    its_valid = valid
    if sizes.shared:
        units, are_own = own_units(units)
        its_valid = valid & are_own
    rows = rows_of_units(units, length, len(state))
    flat = laid_out(advantages)
    if standardize == "worker":
        segments = (by_worker(field, workers, length) for field in (flat, valid))
        flat = from_workers(standardize_segments(*segments), length)
    elif standardize == "rollout":
        flat = _standardized(flat, valid, 1)
    row_advantages = flat[rows]
    if standardize in ("minibatch", "minibatch_sample"):
        count, sample = len(rows) * rows.shape[1], standardize == "minibatch_sample"
        row_advantages = _standardized(
            row_advantages, its_valid[rows], count, epsilon=1e-8, correction=int(sample)
        )
    observations, actions, starts = map(laid_out, (rollout.observations, rollout.actions, starts))
    if evaluate is None:
        dist_params = laid_out(rollout.dist_params)
    else:
        dist_params = evaluate(observations, state, starts)
    return Segment(
        observations=observations,
        actions=actions,
        advantages=flat,
        returns=laid_out(returns),
        old_values=laid_out(rollout.values[:-1]),
        old_dist_params=dist_params,
        old_log_probs=distribution.log_prob(dist_params, actions),
        valid=valid,
        starts=starts,
        state=state,
        rows=rows,
        row_weights=minibatch_weights(its_valid[rows]),
        row_advantages=row_advantages,
        units_per_worker=sizes.units_per_worker,
        shared=sizes.shared,
    )


def _standardized(
    advantages: Tensor, valid: Tensor, groups: int, epsilon: float = 0.0, correction: int = 0
) -> Tensor:
    """Standardise each of as many equal groups of rows, which go on on the other ranks."""
    rows, its_valid = advantages.reshape(groups, -1), valid.reshape(groups, -1)
    moments = all_sum(group_moments(rows, its_valid))
    return standardize_rows(rows, its_valid, moments, epsilon, correction).view_as(advantages)


def _memory_of(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Return states and starts, of no numbers and nowhere for a policy without memory."""
    if rollout.states is None or rollout.starts is None:
        nothing = rollout.values[:-1, :, None][..., :0]
        return nothing, torch.zeros_like(rollout.valid)
    return rollout.states, rollout.starts


def minibatch_weights(valid: Tensor) -> Tensor:
    """Turn ``valid [..., B]`` into weights: 1 / valid rows of the minibatch on all ranks."""
    counts = all_sum(valid.sum(-1, dtype=torch.float32))
    return valid / counts.clamp(min=1).unsqueeze(-1)
