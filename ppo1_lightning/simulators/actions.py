"""From the plain arrays of a policy's actions to those of the simulator.

All simulators share it, so that a space means the same whichever library it came from.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies.spaces import RescaledBox, name_of
from ppo1_lightning.simulators.base import EnvironmentSpec
from ppo1_lightning.simulators.entries import FARTHEST, float_box

_MOST_OUTPUTS = 2**17


class ActionAdapter:
    """Checks a policy's actions and turns them into those of the simulator.

    Policies see the simplest space that holds the same actions: Discrete and MultiDiscrete start
    at 0, an integer Box is a MultiDiscrete, one of bools a MultiBinary, a float Box is float32, and
    all have one dimension.
    Choices that are masked together, one number for each combination, are one Discrete.

    Attributes:
        native: the simulator's own space.
        space: the space that policies act in.
        factor: by which the policy's action is multiplied first, None where it is not.
        combined: of each number, how many values those behind it have together, and its own count:
            into which a combined choice is taken apart; None where there is none.
        offset: what is added to the policy's action, None where nothing is.
        bounds: (lowest, highest) to which actions are clipped, None where they are not.

    Raises:
        ConfigurationError: an unsupported space.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        space: gymnasium.Space[Any],
        num_envs: int,
        mask_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.native = space
        self.offset: NDArray[Any] | None = None
        self.factor: NDArray[np.float32] | None = None
        self.combined: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self.space: Box | Discrete | MultiDiscrete | MultiBinary
        if isinstance(space, Discrete):
            self.space = Discrete(int(space.n))
            self.offset = np.asarray(space.start, np.int64)
        elif isinstance(space, MultiDiscrete):
            self.space = MultiDiscrete(space.nvec.ravel())
            self.offset = space.start.astype(np.int64).ravel()
        elif isinstance(space, MultiBinary) or (isinstance(space, Box) and space.dtype == np.bool_):
            self.space = MultiBinary(int(np.prod(space.shape)))
        elif isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
            self.space = float_box(space, (int(np.prod(space.shape)),))
            if spec.rescale_actions:
                self._rescale()
        elif isinstance(space, Box) and np.issubdtype(space.dtype, np.integer):
            low, high = space.low.astype(np.int64).ravel(), space.high.astype(np.int64).ravel()
            counts = [int(b) - int(a) + 1 for a, b in zip(low, high, strict=True)]
            # more than int64 has would wrap around; they are refused below
            self.space = MultiDiscrete(np.minimum(counts, 2**31).astype(np.int64))
            self.offset = low
        else:
            raise ConfigurationError(
                f"environment {spec.id!r} has the action space {name_of(space)}, expected a Box, "
                "Discrete, MultiDiscrete or MultiBinary"
            )
        if isinstance(self.space, MultiDiscrete) and _is_joint(spec, self.space, mask_shape):
            counts = self.space.nvec.astype(np.int64)
            self.combined = np.prod(counts) // np.cumprod(counts), counts
            self.space = Discrete(int(np.prod(counts)))
        _check_size(spec, space, self.space)
        # What never changes is looked up here: a call costs as much as a third of the simulation.
        box = self.space if isinstance(self.space, Box) else None
        self._shape = (num_envs, *(self.space.shape or ()))
        self._kinds = "f" if box else "iub" if isinstance(self.space, MultiBinary) else "iu"
        self._counts = None if isinstance(self.space, Box) else _counts(self.space)
        self.bounds = _inner_bounds(space) if isinstance(space, Box) and spec.clip_actions else None
        self._native_shape = (num_envs, *(space.shape or ()))
        self._native_dtype = space.dtype

    def __call__(self, action: NDArray[Any]) -> NDArray[Any]:
        """Return a new array of the simulator's actions; ``action`` itself is never changed.

        Args:
            action: [num_envs, *space.shape]; integers, for a Box floats.

        Raises:
            ConfigurationError: a wrong shape or dtype, a value out of range or not finite.
        """
        if action.shape != self._shape or action.dtype.kind not in self._kinds:
            raise self._of_wrong_kind(action)
        good = self._good(action)
        if not good.all():
            raise self._out_of_range(action, good)
        if self.combined is not None:
            behind, counts = self.combined
            action = action[:, None] // behind % counts
        if self.factor is not None:
            action = action * self.factor
        if self.offset is not None:
            action = action + self.offset
        if self.bounds is not None:
            action = np.clip(action, *self.bounds)
        # A copy always: an environment may keep or change the array that it is given.
        native = action.astype(self._native_dtype)
        return native if self._native_shape == self._shape else native.reshape(self._native_shape)

    def _rescale(self) -> None:
        """Let -1 and 1 stand for the bounds, where there are both."""
        assert isinstance(self.space, Box)
        low, high = (bound.astype(np.float64) for bound in (self.space.low, self.space.high))
        bounded = (np.abs(low) <= FARTHEST) & (np.abs(high) <= FARTHEST)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        if (low == -1).all() and (high == 1).all():
            return
        self.factor = ((high - low) / 2).astype(np.float32)
        self.offset = ((high + low) / 2).astype(np.float32)
        inner = np.where(bounded, np.float32(-1), self.space.low)
        outer = np.where(bounded, np.float32(1), self.space.high)
        self.space = RescaledBox(inner, outer, dtype=np.float32)

    def _good(self, action: NDArray[Any]) -> NDArray[np.bool_]:
        if self._counts is None:
            return np.isfinite(action)
        return (action >= 0) & (action < self._counts)

    def _of_wrong_kind(self, action: NDArray[Any]) -> ConfigurationError:
        if action.shape != self._shape:
            return ConfigurationError(
                f"action has the shape {action.shape}, expected {self._shape}: one {self.space} "
                f"for each of {self._shape[0]} environments"
            )
        expected = "floats" if self._counts is None else "integers"
        return ConfigurationError(
            f"action has the dtype {action.dtype}, expected {expected} for {self.space}"
        )

    def _out_of_range(self, action: NDArray[Any], good: NDArray[np.bool_]) -> ConfigurationError:
        row = int(np.argwhere(~good)[0][0])
        counts = self._counts
        expected = "a finite number" if counts is None else f"0 to {(counts - 1).tolist()}"
        return ConfigurationError(
            f"action {action[row].tolist()} of environment {row} is out of range, "
            f"expected {expected} ({self.space})"
        )


def _is_joint(spec: EnvironmentSpec, space: MultiDiscrete, shape: tuple[int, ...] | None) -> bool:
    """Whether a mask is of combinations, not of each number's values behind one another.

    Its size tells, or else its shape, which is that of the counts for combinations; one of a single
    dimension is of each number's values.

    Raises:
        ConfigurationError: neither tells: 2 x 2 is a row for each of two numbers as well.
    """
    if shape is None:
        return False
    counts, size = tuple(space.nvec.tolist()), math.prod(shape)
    if not math.prod(counts) == size == sum(counts):
        return math.prod(counts) == size
    if shape == counts == (2, 2):
        raise ConfigurationError(
            f"environment {spec.id!r} has an action_mask of the shape (2, 2) for {space}, which "
            "may be of combinations or of each number's values; expected the shape (4,) for "
            "values, or Discrete(4) actions for combinations"
        )
    return shape == counts


def masked_choices(
    mask: slice | None, space: gymnasium.Space[Any]
) -> tuple[slice, NDArray[np.int64]] | None:
    """Return the mask's columns and the first one of each number's values, of which one is needed.

    None where there is no mask, or nothing that needs to be allowed.
    """
    if mask is None or not isinstance(space, Discrete | MultiDiscrete):
        return None
    counts = np.atleast_1d(_counts(space))
    firsts = np.cumsum(counts) - counts
    return (mask, firsts) if mask.stop - mask.start == counts.sum() else None


def _check_size(spec: EnvironmentSpec, native: gymnasium.Space[Any], space: Any) -> None:
    """Raise `ConfigurationError` where a policy would have no output, or too many for a network."""
    size = int(np.prod(space.shape)) if isinstance(space, Box) else int(np.sum(_counts(space)))
    if not 1 <= size <= _MOST_OUTPUTS:
        raise ConfigurationError(
            f"environment {spec.id!r} has the action space {name_of(native)} of {size} choices or "
            f"numbers, expected 1 to {_MOST_OUTPUTS}: the policy has an output for each"
        )


def _counts(space: Discrete | MultiDiscrete | MultiBinary) -> NDArray[np.int64]:
    """Return how many values each part of an action has: [] or [*space.shape]."""
    if isinstance(space, MultiDiscrete):
        return space.nvec
    return np.asarray(space.n if isinstance(space, Discrete) else 2, np.int64)


def _inner_bounds(space: Box) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the bounds of a float Box as float32 [size] that lie within, None for integers."""
    if not np.issubdtype(space.dtype, np.floating):
        return None
    ours = float_box(space, (int(np.prod(space.shape)),))
    low, high = space.low.ravel(), space.high.ravel()
    return (
        np.where(ours.low < low, np.nextafter(ours.low, np.float32(np.inf)), ours.low),
        np.where(ours.high > high, np.nextafter(ours.high, np.float32(-np.inf)), ours.high),
    )
