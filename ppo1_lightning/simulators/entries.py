"""What a single observation, or one leaf of several, becomes: a picture, or a vector."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.policies.spaces import IMAGE, MASK, VECTOR, RescaledBox, name_of
from ppo1_lightning.simulators.base import EnvironmentSpec

MOST_COLUMNS = 4096
"""Of one-hot numbers that a leaf becomes; more choices are written in binary digits."""

MOST_CODES = 32
"""Values of an integer of a Box that is taken for a code, such as what is in a cell of a grid."""

SMALLEST_PICTURE = 20
"""Sides from which on a matrix of bytes, or a block of other numbers, is taken for a picture."""

FARTHEST = 1e6
"""Of bounds that are meant: beyond, they stand for none."""

NUMBERS = Box | Discrete | MultiDiscrete | MultiBinary
"""Spaces whose values are numbers."""


class Entry:
    """An observation, or one leaf of a Dict or Tuple.

    Images stay as they are: bytes of three dimensions, and if they are large enough bytes of two
    and other numbers of three, which are brought between 0 and 1 by their bounds. All else becomes
    a vector of float32: integers of a Box that have few values (bytes, too) one-hot, unless those
    would be too many; Discrete and MultiDiscrete one-hot or else in binary digits, MultiBinary 0
    and 1.

    Attributes:
        key: name of the leaf, its keys with dots between, ``""`` where there is no Dict.
        native: the simulator's own space.
        space: what it becomes.
        part: ``"vector"``, ``"image"`` or ``"action_mask"``, what it is a part of.
        one_hot: two int64 arrays of the converted size, None for numbers that are taken as they
            are: the i-th converted number is whether number ``one_hot[0][i]`` equals
            ``one_hot[1][i]``.
        digits: four int64 arrays of the converted size, or None: the i-th one is the binary digit
            worth ``digits[2][i]`` of number ``digits[0][i]`` - ``digits[1][i]``, which has
            ``digits[3][i]`` values.
        scaling: two float32 arrays of the shape of a picture that is none of bytes, what is
            subtracted and what it is then multiplied by; None where nothing is.

    Raises:
        ConfigurationError: an unsupported space.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        native: gymnasium.Space[Any],
        key: str = "",
        *,
        is_mask: bool = False,
    ) -> None:
        self.key, self.native, self._id = key, native, spec.id
        self.one_hot: tuple[NDArray[np.int64], ...] | None = None
        self.digits: tuple[NDArray[np.int64], ...] | None = None
        self.scaling: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if not isinstance(native, NUMBERS):
            raise ConfigurationError(
                f"environment {spec.id!r} observes {' '.join(str(native).split())}"
                f"{f' as {key!r}' if key else ''}, expected a Box, Discrete, MultiDiscrete or "
                "MultiBinary, or a Dict or Tuple of these, of which observation_keys picks some"
            )
        self.part = MASK if is_mask else VECTOR
        # a mask may hold other numbers than 0 and 1, such as what is to be added to logits
        self._is_unchecked = isinstance(native, Box) and not is_mask
        choices = _choices(native)
        if self.part == MASK:
            self._check_mask(spec)
        elif choices is not None:
            counts = [count for _, count in choices]
            if sum(counts) <= MOST_COLUMNS:
                self.one_hot = _one_hot(choices)
            elif not isinstance(native, Box):
                self.digits = _digits(choices)
        if self.one_hot or self.digits:
            tables = self.one_hot or self.digits
            assert tables is not None
            self.space = Box(0, 1, tables[0].shape, np.float32)
        elif isinstance(native, MultiBinary):
            self.space = Box(0, 1, (int(np.prod(native.shape)),), np.float32)
        else:
            assert isinstance(native, Box)
            picture = None if self.part == MASK else _picture(spec, native)
            self.part = self.part if picture is None else IMAGE
            self.space = picture or float_box(native, (int(np.prod(native.shape)),))
            if picture is not None and picture.dtype != np.uint8:
                self._scale(picture)

    def _scale(self, picture: Box) -> None:
        """Let a picture lie between 0 and 1, as bytes do, where it has bounds beyond."""
        low, high = (bound.astype(np.float64) for bound in (picture.low, picture.high))
        bounded = (np.abs(low) <= FARTHEST) & (np.abs(high) <= FARTHEST) & (low < high)
        if np.abs([low[bounded], high[bounded]]).max(initial=0) <= 1:
            return
        first = np.where(bounded, low, 0).astype(np.float32)
        factor = np.divide(1, high - low, out=np.ones_like(low), where=bounded)
        self.scaling = first, factor.astype(np.float32)
        low, high = np.where(bounded, 0, low), np.where(bounded, 1, high)
        self.space = RescaledBox(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    @property
    def rank(self) -> int:
        """Where its part comes in a row."""
        return (VECTOR, IMAGE, MASK).index(self.part)

    def _check_mask(self, spec: EnvironmentSpec) -> None:
        if isinstance(self.native, Discrete | MultiDiscrete):
            raise ConfigurationError(
                f"environment {spec.id!r} has the action_mask {name_of(self.native)}, expected a "
                "MultiBinary or Box of one number for each choice"
            )

    def write(self, observation: NDArray[Any], out: NDArray[Any]) -> None:
        """Write a batch [N, *native.shape] to ``out`` [N, *space.shape], or [N, size].

        Raises:
            SimulationError: a value that the space does not have.
        """
        if self.one_hot is None and self.digits is None and self._is_unchecked:
            same = observation.shape == out.shape
            numbers = observation if same else np.reshape(observation, out.shape)
            if self.scaling is None:
                out[...] = numbers
            else:
                first, factor = (part.reshape(out.shape[1:]) for part in self.scaling)
                np.multiply(np.subtract(numbers, first, out=out), factor, out=out)
            return
        numbers = np.reshape(observation, (len(out), -1))
        if self.one_hot is not None:
            columns, values = self.one_hot
            hot = numbers[:, columns] == values
            out[...], good = hot, hot.sum(1) == numbers.shape[1]
        elif self.digits is not None:
            columns, firsts, divisors, counts = self.digits
            offsets = numbers[:, columns].astype(np.int64) - firsts
            # without a division, of which ONNX makes one of floats
            digits = offsets % (2 * divisors) >= divisors
            out[...], good = digits, (offsets >= 0) & (offsets < counts)
        else:
            out[...], good = numbers, (numbers == 0) | (numbers == 1)
        if not good.all():
            wrong = int(np.argwhere(~good)[0][0])
            of_mask = self.part == MASK
            expected = "1 for what is allowed, else 0" if of_mask else f"one of {self.native}"
            raise SimulationError(
                f"of {self._id!r} returned the observation {np.asarray(observation[wrong])}"
                f"{f' as {self.key!r}' if self.key else ''}, expected {expected}",
                environment=wrong,
            )


def _choices(space: gymnasium.Space[Any]) -> list[tuple[int, int]] | None:
    """Return the (first value, count) of each number that is one of a few, None for quantities."""
    if isinstance(space, Discrete):
        return [(int(space.start), int(space.n))]
    if isinstance(space, MultiDiscrete):
        return list(zip(space.start.ravel().tolist(), space.nvec.ravel().tolist(), strict=True))
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.integer):
        low, high = (bound.ravel().tolist() for bound in (space.low, space.high))
        counts = [last - first + 1 for first, last in zip(low, high, strict=True)]
        if counts and 2 < max(counts) <= MOST_CODES:
            return list(zip(low, counts, strict=True))
    return None


def _one_hot(choices: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tables of `Entry.one_hot`."""
    columns = np.repeat(np.arange(len(choices)), [count for _, count in choices])
    values = [np.arange(first, first + count) for first, count in choices]
    return columns, np.concatenate(values).astype(np.int64)


def _digits(choices: list[tuple[int, int]]) -> tuple[NDArray[np.int64], ...]:
    """Return the tables of `Entry.digits`."""
    rows = [
        (column, first, 2**digit, count)
        for column, (first, count) in enumerate(choices)
        for digit in range(max(1, (count - 1).bit_length()))
    ]
    return tuple(np.asarray(table, np.int64) for table in zip(*rows, strict=True))


def _picture(spec: EnvironmentSpec, space: Box) -> Box | None:
    """Return the space as a picture [C, H, W] or [H, W, C], None where it is none.

    Raises:
        ConfigurationError: bytes of more dimensions than pictures have.
    """
    shape, is_bytes = space.shape, space.dtype == np.uint8
    if is_bytes and len(shape) > 3 and shape[-1] == 1:  # grey ones, stacked
        shape = shape[:-1]
        space = Box(space.low.reshape(shape), space.high.reshape(shape), dtype=np.uint8)
    if is_bytes and len(shape) > 3:
        raise ConfigurationError(
            f"environment {spec.id!r} observes {name_of(space)}, expected pictures [C, H, W] or "
            "[H, W, C]; make them grey before they are stacked"
        )
    if is_bytes and len(shape) == 3:
        return space
    sides = (shape[:2] if shape[-1] < shape[0] else shape[-2:]) if shape else ()
    if len(sides) < 2 or min(sides) < SMALLEST_PICTURE:
        return None
    if is_bytes:  # grey, without an axis for its one channel
        return Box(space.low[None], space.high[None], dtype=np.uint8)
    return float_box(space, shape) if len(shape) == 3 else None


def float_box(space: Box, shape: tuple[int, ...]) -> Box:
    """Return ``space`` as a float32 Box of ``shape``."""
    low, high = space.low.reshape(shape), space.high.reshape(shape)
    if np.issubdtype(space.dtype, np.floating):
        # EnvPool writes "no bound" as C++'s numeric_limits: min() is the smallest positive number.
        limits = np.finfo(low.dtype.name)
        low = np.where((low == limits.tiny) | (low == limits.min), -np.inf, low)
        high = np.where(high == limits.max, np.inf, high)
    return Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
