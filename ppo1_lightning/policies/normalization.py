"""Running statistics: of observations (for the policy) and of returns (for the rewards)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppo1_lightning.distributed import all_sum


class ObservationNormalizer(nn.Module):
    """Clip((observation - mean) / std, -5, 5) with running statistics of all observations so far.

    The counterpart of baselines' ``common/mpi_running_mean_std.py`` as ``ppo1/mlp_policy.py`` uses
    it. The sums are float64 on the CPU wherever the module lives; ``mean`` and ``std`` are float32
    buffers. As in the original, both moments are rounded to float32 *before* the square of the
    mean is subtracted, and counts start at ``epsilon``.

    Args:
        shape: of what is normalised.
        columns: of the observations that it is, None where it is all of them.
    """

    mean: Tensor  # [*shape] float32
    std: Tensor  # [*shape] float32

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        columns: slice | None = None,
        epsilon: float = 1e-2,
        clip: float = 5.0,
    ) -> None:
        super().__init__()
        self.columns, self.epsilon, self.clip = columns, epsilon, clip
        self.sum = torch.zeros(shape, dtype=torch.float64)
        self.sum_squares = torch.full(shape, epsilon, dtype=torch.float64)
        self.count = torch.tensor(epsilon, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self._refresh()

    def forward(self, observation: Tensor) -> Tensor:
        """Normalise observations ``[..., *shape]``, or their columns."""
        if self.columns is not None:
            observation = observation[..., self.columns]
        return ((observation - self.mean) / self.std).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, observations: Tensor) -> None:
        """Add the observations ``[B, *shape]`` of all ranks, B as each has it."""
        if self.columns is not None:
            observations = observations[:, self.columns]
        rows = observations.double()
        count = rows.new_tensor([len(rows)])
        local = torch.cat([rows.sum(0).flatten(), rows.square().sum(0).flatten(), count])
        total = all_sum(local).cpu()
        size = self.sum.numel()
        self.sum += total[:size].view_as(self.sum)
        self.sum_squares += total[size : 2 * size].view_as(self.sum)
        self.count += total[-1]
        self._refresh()

    def _refresh(self) -> None:
        mean = (self.sum / self.count).float()
        variance = (self.sum_squares / self.count).float() - mean.square()
        self.mean.copy_(mean)
        self.std.copy_(variance.clamp(min=self.epsilon).sqrt())

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"sum": self.sum, "sum_squares": self.sum_squares, "count": self.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.sum = state["sum"].to("cpu", torch.float64).clone()
        self.sum_squares = state["sum_squares"].to("cpu", torch.float64).clone()
        self.count = state["count"].to("cpu", torch.float64).clone()
        self._refresh()


class RewardNormalizer(nn.Module):
    """Divide rewards by the running std of the discounted return (``normalize_returns``).

    The counterpart of ``ret_rms`` in baselines' ``common/vec_env/vec_normalize.py`` (used by ppo2,
    not by ppo1): a step's rewards are divided by the std of the returns up to that step, over the
    environments of all ranks.
    """

    moments: Tensor  # [3] float64: count, sum, sum of squares of the discounted returns

    def __init__(self, gamma: float, *, epsilon: float = 1e-8, clip: float = 10.0):
        super().__init__()
        self.gamma, self.epsilon, self.clip = gamma, epsilon, clip
        self.moments = torch.tensor([1e-4, 0.0, 1e-4], dtype=torch.float64)  # a bit of variance 1
        self._return: Tensor | None = None  # [N] of this rank's environments, carried on

    def restart(self) -> None:
        """Forget the episodes under way: the environments are new."""
        self._return = None

    @torch.no_grad()
    def forward(self, rewards: Tensor, done: Tensor, valid: Tensor) -> Tensor:
        """Update the statistics with ``rewards [T, N]`` and return them scaled and clipped.

        ``done`` and ``valid`` are ``[T, N]`` bool: an episode's last row, a real transition.
        """
        carry = self._return if self._return is not None else torch.zeros_like(rewards[0])
        returns = torch.empty_like(rewards, dtype=torch.float64)
        for t in range(len(rewards)):
            carry = torch.where(valid[t], rewards[t] + self.gamma * carry, carry)
            returns[t] = carry
            carry = torch.where(done[t], 0.0, carry)
        self._return = carry
        kept = torch.where(valid, returns, 0.0)
        sums = torch.stack([valid.double().sum(1), kept.sum(1), kept.square().sum(1)])  # [3, T]
        moments = self.moments[:, None] + all_sum(sums).cpu().cumsum(1)
        self.moments = moments[:, -1].clone()
        count, first, second = moments
        variance = (second / count - (first / count) ** 2).clamp(min=0.0)
        scale = 1.0 / (variance + self.epsilon).sqrt().float().to(rewards.device)
        return (rewards * scale[:, None]).clamp(-self.clip, self.clip)

    def get_extra_state(self) -> dict[str, Tensor]:
        return {"moments": self.moments}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.moments = state["moments"].to("cpu", torch.float64).clone()
