"""From a simulator's own observations to the plain arrays that policies see.

All simulators share it, so that a space means the same whichever library it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError, SimulationError, nearest
from ppo1_lightning.policies.spaces import name_of
from ppo1_lightning.simulators.base import EnvironmentSpec

_PARTS = ("vector", "image", "action_mask")


class ObservationAdapter:
    """Writes batches of a simulator's observations into arrays [N, *space.shape].

    What an `Entry` becomes. The entries of a Dict come behind one another: vectors, then the
    image, then the entry ``action_mask``.

    Attributes:
        keys: of a Dict, the entries that are used, in order; None where it is no Dict.
        entries: those entries, or the one that there is.
        space: what one converted observation is: a Box, or a Dict where there is more than one
            of ``vector``, ``image`` and ``action_mask`` (see `spaces.parts_of`).

    Raises:
        ConfigurationError: an unsupported space, or an unknown entry in ``observation_keys``.
    """

    def __init__(self, spec: EnvironmentSpec, space: gymnasium.Space[Any]) -> None:
        self.keys: list[str] | None = None
        if isinstance(space, Dict):
            chosen = [Entry(spec, space[key], key) for key in _observation_keys(spec, space)]
            self.entries = sorted(chosen, key=lambda entry: _PARTS.index(entry.part))
            self.keys = [entry.key for entry in self.entries]
        elif spec.observation_keys is None:
            self.entries = [Entry(spec, space)]
        else:
            raise ConfigurationError(
                f"observation_keys={list(spec.observation_keys)} does not apply to {spec.id!r}, "
                f"whose observation is {name_of(space)} and not a Dict; expected null"
            )
        self.space = _space_of(spec, self.entries)
        sizes = [int(np.prod(entry.space.shape)) for entry in self.entries]
        ends = np.cumsum(sizes).tolist()
        self._slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def __call__(self, observation: Any, out: NDArray[Any]) -> None:
        """Write a batch to ``out``: an array [N, ...], or of a Dict space a mapping of them."""
        if self.keys is None:
            self.entries[0].write(observation, out)
        elif len(self.keys) == 1:
            self.entries[0].write(observation[self.keys[0]], out)
        else:
            for key, entry, part in zip(self.keys, self.entries, self._slices, strict=True):
                entry.write(observation[key], out[:, part])


class Entry:
    """An observation, or one entry of a Dict.

    Images (uint8, two dimensions or more) stay as they are. All else becomes float32, in a Dict a
    vector, as ``gymnasium.spaces.flatten`` has it: Discrete and MultiDiscrete one-hot, MultiBinary
    0 and 1.

    Attributes:
        key: of the entry, ``""`` where there is no Dict.
        native: the simulator's own space.
        space: what it becomes.
        part: ``"vector"``, ``"image"`` or ``"action_mask"``, the name of its part of the whole.
        one_hot: two int64 arrays of the converted size, None for numbers that are taken as they
            are: the i-th converted number is whether number ``one_hot[0][i]`` equals
            ``one_hot[1][i]``.

    Raises:
        ConfigurationError: an unsupported space.
    """

    def __init__(self, spec: EnvironmentSpec, native: gymnasium.Space[Any], key: str = "") -> None:
        self.key, self.native, self._id = key, native, spec.id
        self.one_hot: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        if isinstance(native, Discrete | MultiDiscrete):
            self.one_hot = _one_hot(native)
            self.space = Box(0, 1, self.one_hot[0].shape, np.float32)
        elif isinstance(native, MultiBinary):
            self.space = Box(0, 1, (int(np.prod(native.shape)),), np.float32)
        elif isinstance(native, Box):
            is_image = native.dtype == np.uint8 and len(native.shape) >= 2
            shape = (int(np.prod(native.shape)),) if key else native.shape or (1,)
            self.space = native if is_image else float_box(native, shape)
        else:
            raise ConfigurationError(
                f"environment {spec.id!r} observes {' '.join(str(native).split())}"
                f"{f' as {key!r}' if key else ''}, expected a Box, Discrete, MultiDiscrete or "
                "MultiBinary, or a Dict of these, whose entries observation_keys picks"
            )
        is_mask = key == "action_mask"
        if is_mask and self.one_hot is not None:
            raise ConfigurationError(
                f"environment {spec.id!r} has the action_mask {name_of(native)}, expected a "
                "MultiBinary or Box of one number for each choice"
            )
        is_image = len(self.space.shape) >= 2 and self.space.dtype == np.uint8
        self.part = "action_mask" if is_mask else "image" if is_image else "vector"

    def write(self, observation: NDArray[Any], out: NDArray[Any]) -> None:
        """Write a batch [N, *native.shape] to ``out`` [N, *space.shape], or [N, size].

        Raises:
            SimulationError: a value that a Discrete, MultiDiscrete or MultiBinary does not have.
        """
        if isinstance(self.native, Box):
            same = observation.shape == out.shape
            out[...] = observation if same else np.reshape(observation, out.shape)
            return
        numbers = np.reshape(observation, (len(out), -1))
        if self.one_hot is None:
            out[...], good = numbers, (numbers == 0) | (numbers == 1)
        else:
            columns, values = self.one_hot
            hot = numbers[:, columns] == values
            out[...], good = hot, hot.sum(1) == numbers.shape[1]
        if not good.all():
            wrong = int(np.argwhere(~good)[0][0])
            raise SimulationError(
                f"of {self._id!r} returned the observation {np.asarray(observation[wrong])}"
                f"{f' as {self.key!r}' if self.key else ''}, expected one of {self.native}",
                environment=wrong,
            )


def _observation_keys(spec: EnvironmentSpec, space: Dict) -> list[str]:
    """Return the entries of a Dict observation to use, in order."""
    if spec.observation_keys is None:
        return list(space.spaces)
    keys = spec.observation_keys
    if isinstance(keys, str) or not isinstance(keys, Sequence) or not keys:
        raise ConfigurationError(
            f"observation_keys={keys!r} is not a list of names, expected some of "
            f"{', '.join(space.spaces)}"
        )
    for key in keys:
        if key not in space.spaces:
            raise ConfigurationError(
                f"observation_keys has {key!r}, which {spec.id!r} does not observe; expected some "
                f"of {', '.join(space.spaces)}{nearest(str(key), space.spaces)}"
            )
    if len(set(keys)) < len(keys):
        raise ConfigurationError(
            f"observation_keys={list(keys)} has a name twice, expected each one once"
        )
    return list(keys)


def _one_hot(space: Discrete | MultiDiscrete) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tables of `Entry.one_hot`."""
    counts = np.atleast_1d(space.n if isinstance(space, Discrete) else space.nvec.ravel())
    starts = np.broadcast_to(np.ravel(space.start), counts.shape)
    values = [np.arange(first, first + n) for first, n in zip(starts, counts, strict=True)]
    return np.repeat(np.arange(len(counts)), counts), np.concatenate(values).astype(np.int64)


def _space_of(spec: EnvironmentSpec, entries: Sequence[Entry]) -> Box | Dict:
    """Return the space of several entries, those of each part behind one another."""
    if not any(entry.part != "action_mask" and 0 not in entry.space.shape for entry in entries):
        masked = any(entry.part == "action_mask" for entry in entries)
        found = "nothing but an action mask" if masked else "nothing"
        raise ConfigurationError(f"environment {spec.id!r} observes {found}, expected some numbers")
    if len(entries) == 1 and not entries[0].key:
        return entries[0].space
    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        parts.setdefault(entry.part, []).append(entry)
    if len(parts.get("image", [])) > 1:
        images = [entry.key for entry in parts["image"]]
        raise ConfigurationError(
            f"environment {spec.id!r} observes the images {' and '.join(images)}, expected one; "
            "env.observation_keys picks the entries to use"
        )
    boxes = [(part, _concatenated(its_entries)) for part, its_entries in parts.items()]
    return boxes[0][1] if len(boxes) == 1 else Dict(boxes)


def _concatenated(entries: Sequence[Entry]) -> Box:
    """Return the Box of several vectors behind one another."""
    if len(entries) == 1 and entries[0].part == "image":
        return entries[0].space
    low, high = (
        np.concatenate([getattr(entry.space, bound).ravel() for entry in entries])
        for bound in ("low", "high")
    )
    return Box(low, high, dtype=np.float32)


def float_box(space: Box, shape: tuple[int, ...]) -> Box:
    """Return ``space`` as a float32 Box of ``shape``."""
    low, high = space.low.reshape(shape), space.high.reshape(shape)
    if np.issubdtype(space.dtype, np.floating):
        # EnvPool writes "no bound" as C++'s numeric_limits: min() is the smallest positive number.
        limits = np.finfo(low.dtype.name)
        low = np.where((low == limits.tiny) | (low == limits.min), -np.inf, low)
        high = np.where(high == limits.max, np.inf, high)
    return Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
