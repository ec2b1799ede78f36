"""Whole-episode returns and lengths, found in a rollout without Python work per step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class EpisodeTracker:
    """Adds up unscaled rewards from rollout to rollout until an episode (game) is over."""

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs)  # of the episodes under way
        self._length = np.zeros(num_envs)

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
        lengths, self._length = _sums_between(self._length + np.cumsum(valid, 0, dtype=float), episode_over)
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
