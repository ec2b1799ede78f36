"""Whole-episode returns and lengths: found in a rollout without Python work per step, averaged."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo1_lightning.distributed import all_gather

WINDOW = 100
"""Episodes in the running means of return and length."""


class EpisodeTracker:
    """Adds up unscaled rewards from rollout to rollout until an episode (game) is over."""

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs)  # of the episodes under way
        self._length = np.zeros(num_envs)

    def under_way(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what the episodes that have not ended have come to: returns, lengths ``[N]``."""
        return self._return, self._length

    def update(
        self,
        raw_rewards: NDArray[np.float32],
        valid: NDArray[np.bool_],
        episode_over: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the returns and lengths of the episodes that ended, NaN elsewhere.

        All arrays are ``[T, N]``; a return stands in the row of its episode's last transition.
        """
        returns, self._return = _sums_between(
            self._return + np.cumsum(np.where(valid, raw_rewards, 0.0), 0), episode_over
        )
        lengths, self._length = _sums_between(
            self._length + np.cumsum(valid, 0, dtype=float), episode_over
        )
        return returns, lengths


def _sums_between(
    totals: NDArray[np.float64], ends: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Split running ``totals [T, N]`` at ``ends``: the sum up to each end, and what is left [N]."""
    last_end = np.maximum.accumulate(np.where(ends, np.arange(len(ends))[:, None], -1), 0)
    at_last_end = np.where(last_end >= 0, np.take_along_axis(totals, last_end.clip(0), 0), 0.0)
    before = np.concatenate([np.zeros_like(totals[:1]), at_last_end[:-1]])
    sums = np.where(ends, totals - before, np.nan).astype(np.float32)
    return sums, totals[-1] - at_last_end[-1]


class EpisodeStatistics:
    """Running means over the last `WINDOW` episodes of all ranks, the same on every rank."""

    def __init__(self) -> None:
        self._episodes: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # (return, length)

    def update(self, returns: Tensor, lengths: Tensor) -> int:
        """Add this rank's ``[T, N]``, NaN where no episode ended; return how many did on all.

        They are taken in the order of time, then of environments, on any number of ranks.
        """
        episodes = all_gather(torch.stack([returns, lengths], -1), dim=1)
        ended = episodes[~episodes[..., 1].isnan()].tolist()
        self._episodes.extend((episode[0], episode[1]) for episode in ended)
        return len(ended)

    @property
    def returns(self) -> list[float]:
        """Returns of the last episodes, the oldest first."""
        return [episode[0] for episode in self._episodes]

    @property
    def return_mean(self) -> float:
        """Mean return, NaN before an episode has ended."""
        return _mean(self.returns)

    @property
    def length_mean(self) -> float:
        """Mean length, NaN before an episode has ended."""
        return _mean([episode[1] for episode in self._episodes])

    def state_dict(self) -> list[list[float]]:
        """Return the episodes in plain lists, for a checkpoint."""
        return [list(episode) for episode in self._episodes]

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Take over the episodes of a checkpoint."""
        self._episodes = deque(((episode[0], episode[1]) for episode in state), maxlen=WINDOW)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
