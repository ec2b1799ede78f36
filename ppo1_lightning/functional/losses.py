"""The PPO losses and what is measured about them, as pure functions of tensors ``[B]``.

A mean over transitions is a sum weighted by ``weights``: 1 / (number of valid rows of the whole
minibatch, over all ranks) for a transition, 0 for an invalid row. So shapes are static, and the
sum of the ranks' losses is the loss of the minibatch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_coef: Tensor) -> Tensor:
    """Return min(r A, clip(r, 1 - eps, 1 + eps) A), equation 7 of the PPO paper."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)


def value_error(
    values: Tensor, returns: Tensor, old_values: Tensor, value_clip: Tensor | None
) -> Tensor:
    """Return the squared value error, unsummed (no 1/2).

    With ``value_clip``, ppo2's pessimistic variant: the larger of the error and that of the values
    clipped to within ``value_clip`` of the old ones (``ppo2/model.py``); ppo1 has none.
    """
    error = (values - returns).square()
    if value_clip is None:
        return error
    clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
    return torch.maximum(error, (clipped - returns).square())


def weighted_mean(terms: Tensor, weights: Tensor) -> Tensor:
    """Return this rank's share of the mean of ``terms`` over a minibatch.

    A weight of 0 silences its row even where the term is not finite.
    """
    return torch.where(weights > 0, terms * weights, 0.0).sum()
