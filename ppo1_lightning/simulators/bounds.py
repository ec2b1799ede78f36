"""Numbers of an environment that are none, too large, or outside of the space that it states."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from ppo1_lightning.errors import SimulationError

log = logging.getLogger("ppo1_lightning")

LARGEST = 1e18
"""Of an observation or a reward, whose square is a float32 then."""

ROUNDING = 1e-3
"""Of the range between the bounds, by which an observation may exceed them unnoticed."""


class Bounds:
    """Warns once where an observation exceeds them.

    It is learned from all the same: many environments exceed the bounds that they state.

    Args:
        env_id: for the message.
        space: of one observation as an array.
    """

    def __init__(self, env_id: str, space: Box) -> None:
        self._id = env_id
        with np.errstate(invalid="ignore", over="ignore"):
            margin = np.nan_to_num(ROUNDING * (space.high - space.low), posinf=0.0)
        self._space, self._low, self._high = space, space.low - margin, space.high + margin
        bounded = np.isfinite(space.low).any() or np.isfinite(space.high).any()
        self._watched = bool(bounded) and space.dtype != np.uint8  # all of which is inside

    def tell(self, observations: NDArray[Any]) -> None:
        """Look at observations ``[T, N, ...]``."""
        if not self._watched:
            return
        outside = (observations < self._low) | (observations > self._high)
        if outside.any():
            self._watched = False
            where = tuple(np.argwhere(outside)[0])
            log.warning(
                "environment %d of %r returned the observation %g, outside of its space's bounds "
                "of %g and %g",
                where[1],
                self._id,
                observations[where],
                self._space.low[where[2:]],
                self._space.high[where[2:]],
            )


def check_finite(env_id: str, what: str, values: NDArray[Any]) -> None:
    """Raise `SimulationError` where ``values`` [T, N, ...] hold a NaN or too large a number."""
    if values.dtype == np.uint8:
        return
    if values.min(initial=0) >= -LARGEST and values.max(initial=0) <= LARGEST:
        return  # a NaN would be both
    where = tuple(np.argwhere(~((values >= -LARGEST) & (values <= LARGEST)))[0])
    raise SimulationError(
        f"of {env_id!r} returned the {what} {values[where]}, expected finite numbers of at most "
        f"{LARGEST:g}",
        environment=int(where[1]),
    )
