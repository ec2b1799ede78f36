"""Running statistics: of observations (for the policy) and of returns (for the rewards)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space
from numpy.typing import NDArray
from torch import Tensor, nn

from ppo1_lightning.distributed import all_gather, all_sum
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies.spaces import name_of, parts_of
from ppo1_lightning.policies.state import state_size


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
        kept = {name: _restored(state, name, its) for name, its in self.get_extra_state().items()}
        self.sum, self.sum_squares, self.count = kept["sum"], kept["sum_squares"], kept["count"]
        self._refresh()


def _restored(state: Any, name: str, current: Tensor) -> Tensor:
    """Return a statistic as a checkpoint has it: float64, on the CPU.

    Raises:
        ConfigurationError: it has none, not of that shape, or one that is not finite.
    """
    kept = state.get(name) if isinstance(state, dict) else None
    if not isinstance(kept, Tensor) or kept.shape != current.shape or not kept.isfinite().all():
        raise ConfigurationError(
            f"the checkpoint is damaged: no valid {name!r} of a normaliser in it"
        )
    return kept.to("cpu", torch.float64).clone()


class RunningMoments(nn.Module):
    """Mean and population variance of all rows so far (``common/running_mean_std.py``).

    They are float64 on the CPU wherever the module lives. At first the mean is 0 and the variance
    1, with the weight of a ten-thousandth of a row.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean, self.variance, self.count = np.zeros(shape), np.ones(shape), 1e-4

    def add(self, rows: NDArray[Any]) -> None:
        """Add ``rows [B, *shape]``, whose own moments are of their dtype as in the original."""
        if not len(rows):
            return
        count, total = len(rows), self.count + len(rows)
        delta = rows.mean(0) - self.mean
        squares = self.variance * self.count + rows.var(0) * count
        self.mean = self.mean + delta * count / total
        self.variance = (squares + np.square(delta) * self.count * count / total) / total
        self.count = total

    def get_extra_state(self) -> dict[str, Tensor]:
        moments = {"mean": self.mean, "variance": self.variance, "count": self.count}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in moments.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        kept = {name: _restored(state, name, its) for name, its in self.get_extra_state().items()}
        self.mean, self.variance = kept["mean"].numpy(), kept["variance"].numpy()
        self.count = float(kept["count"])


class StepNormalizer(RunningMoments):
    """Observations as baselines' ``VecNormalize`` shows them: step by step, by all seen so far.

        clip((observation - mean) / sqrt(variance + 1e-8), -10, 10)

    It stands before the policy. A step's observations are counted before they are shown, and what
    a policy was shown is what it learns from: `rollouts.normalized` does that; anywhere else the
    statistics are those of the end of the training so far. Of a Dict, its ``vector`` is normalised.

    Args:
        space: of one observation.

    Raises:
        ConfigurationError: there is no vector in it.
    """

    def __init__(self, space: Space[Any], *, epsilon: float = 1e-8, clip: float = 10.0) -> None:
        vector = parts_of(space).get("vector")
        if vector is None:
            raise ConfigurationError(
                f"algo.normalize_observations=true is for vectors, observations are "
                f"{name_of(space)}; expected false"
            )
        super().__init__(vector.space.shape)
        self.columns = ... if vector.columns is None else (..., vector.columns)
        self.epsilon, self.clip = epsilon, clip

    def forward(self, observations: Tensor) -> Tensor:
        """Return observations ``[..., D]``, in which the vector is normalised: float32."""
        device = observations.device
        mean, variance = (torch.as_tensor(m, device=device) for m in (self.mean, self.variance))
        centred = observations[self.columns].double() - mean
        z = (centred / (variance + self.epsilon).sqrt()).clamp(-self.clip, self.clip).float()
        if self.columns is ...:
            return z
        whole = observations.clone()
        whole[self.columns] = z
        return whole

    def observe(self, observations: NDArray[Any], final: NDArray[np.bool_], device: Any) -> None:
        """Count a step's observations ``[N, D]`` of each rank, then normalise them in place.

        Args:
            final: ``[N]``, an episode's last ones, which the original does not see.
            device: on which ranks exchange tensors.
        """
        rows = np.where(final[:, None], np.nan, observations[self.columns])
        everyone = all_gather(torch.from_numpy(rows).to(device), dim=0).cpu().numpy()
        self.add(everyone[np.isfinite(everyone).all(1)])
        observations[...] = self(torch.from_numpy(observations)).numpy()


class NormalizedPolicy(nn.Module):
    """A policy of what a `StepNormalizer` shows, from observations as the environment's."""

    def __init__(self, normalizer: StepNormalizer, policy: nn.Module) -> None:
        super().__init__()
        self.normalizer, self.policy = normalizer, policy
        self.state_size = state_size(policy)
        self.state_dtype = getattr(policy, "state_dtype", torch.float32)

    def forward(self, observation: Tensor, *memory: Any) -> Any:
        """Evaluate observations ``[B, ...]``."""
        return self.policy(self.normalizer(observation), *memory)


class RewardNormalizer(RunningMoments):
    """Divide rewards by the running std of the discounted return (``normalize_returns``).

    The counterpart of ``ret_rms`` in baselines' ``common/vec_env/vec_normalize.py`` (used by ppo2,
    not by ppo1): a step's rewards are divided by the std of the returns up to that step, over the
    environments of all ranks, and clipped.
    """

    def __init__(self, gamma: float, *, epsilon: float = 1e-8, clip: float = 10.0):
        super().__init__(())
        self.gamma, self.epsilon, self.clip = gamma, epsilon, clip
        self.under_way: NDArray[np.float64] | None = None  # returns [N] of this rank's episodes

    def restart(self) -> None:
        """Forget the episodes under way: the environments are new."""
        self.under_way = None

    @torch.no_grad()
    def forward(self, rewards: Tensor, done: Tensor, valid: Tensor) -> Tensor:
        """Update the statistics with ``rewards [T, N]`` and return them scaled and clipped.

        ``done`` and ``valid`` are ``[T, N]`` bool: an episode's last row, a real transition.
        """
        returns = self._discounted(*(field.cpu().numpy() for field in (rewards, done, valid)))
        everyone = all_gather(torch.from_numpy(returns).to(rewards.device), dim=1).cpu().numpy()
        divisors = np.empty(len(returns), np.float32)
        for t, row in enumerate(everyone):
            self.add(row[~np.isnan(row)])
            divisors[t] = np.sqrt(self.variance + self.epsilon)
        divisor = torch.from_numpy(divisors).to(rewards.device)[:, None]
        return (rewards / divisor).clamp(-self.clip, self.clip)

    def _discounted(
        self, rewards: NDArray[Any], done: NDArray[np.bool_], valid: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the discounted rewards of the episodes under way ``[T, N]``, NaN for no row."""
        carry = np.zeros(rewards.shape[1]) if self.under_way is None else self.under_way
        returns = np.empty(rewards.shape)
        for t in range(len(rewards)):
            carry = np.where(valid[t], carry * self.gamma + rewards[t], carry)
            returns[t] = np.where(valid[t], carry, np.nan)
            carry = np.where(done[t], 0.0, carry)
        self.under_way = carry
        return returns

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if isinstance(state, dict) and "moments" in state:
            # count, sum and sum of squares, as 0.1 wrote them
            count, total, squares = _restored(state, "moments", torch.zeros(3))
            mean = total / count
            state = {"mean": mean, "variance": squares / count - mean.square(), "count": count}
        super().set_extra_state(state)
