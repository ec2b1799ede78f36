"""From a simulator's own observations and actions to the plain arrays that policies use, and back.

Both simulators share these, so that a space means the same whichever library it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError, nearest
from ppo1_lightning.simulators.base import EnvironmentSpec
from ppo1_lightning.spaces import name_of


class ObservationAdapter:
    """Writes batches of a simulator's observations into arrays [N, *space.shape].

    Images (uint8, two dimensions or more) stay as they are; every other Box becomes float32; the
    Box vectors of a Dict are concatenated.

    Attributes:
        space: what one converted observation is.

    Raises:
        ConfigurationError: an unsupported space, or an unknown entry in ``observation_keys``.
    """

    def __init__(self, spec: EnvironmentSpec, space: gymnasium.Space[Any]) -> None:
        self._keys: list[str] | None = None
        if isinstance(space, Dict):
            self._keys = _observation_keys(spec, space)
            boxes = [_observation_box(spec, space[key], key) for key in self._keys]
            self.space = boxes[0] if len(boxes) == 1 else _concatenated(spec, space, boxes)
            return
        if spec.observation_keys is not None:
            raise ConfigurationError(
                f"observation_keys={list(spec.observation_keys)} does not apply to {spec.id!r}, "
                f"whose observation is {name_of(space)} and not a Dict; expected null"
            )
        self.space = _observation_box(spec, space)
        self._same_shape = self.space.shape == space.shape

    def __call__(self, observation: Any, out: NDArray[Any]) -> None:
        """Write a batch to ``out``: an array [N, ...], or of a Dict space a mapping of them."""
        if self._keys is None:
            out[...] = observation if self._same_shape else np.reshape(observation, out.shape)
        elif len(self._keys) == 1:
            out[...] = np.reshape(observation[self._keys[0]], out.shape)
        else:
            flat = [np.reshape(observation[key], (len(out), -1)) for key in self._keys]
            np.concatenate(flat, axis=1, out=out, casting="unsafe")


class ActionAdapter:
    """Checks a policy's actions and turns them into those of the simulator.

    Policies see the simplest space that holds the same actions: Discrete and MultiDiscrete start
    at 0, an integer Box is a MultiDiscrete, a float Box is float32, and all have one dimension.

    Attributes:
        space: the space that policies act in.

    Raises:
        ConfigurationError: an unsupported space.
    """

    def __init__(self, spec: EnvironmentSpec, space: gymnasium.Space[Any], num_envs: int) -> None:
        self._offset: NDArray[np.int64] | None = None  # our action 0 is the simulator's offset
        self.space: Box | Discrete | MultiDiscrete | MultiBinary
        if isinstance(space, Discrete):
            self.space = Discrete(int(space.n))
            self._offset = np.asarray(space.start, np.int64)
        elif isinstance(space, MultiDiscrete):
            self.space = MultiDiscrete(space.nvec.ravel())
            self._offset = space.start.astype(np.int64).ravel()
        elif isinstance(space, MultiBinary):
            self.space = MultiBinary(int(np.prod(space.shape)))
        elif isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
            self.space = _float_box(space, (int(np.prod(space.shape)),))
        elif isinstance(space, Box) and np.issubdtype(space.dtype, np.integer):
            low, high = space.low.astype(np.int64).ravel(), space.high.astype(np.int64).ravel()
            self.space = MultiDiscrete(high - low + 1)
            self._offset = low
        else:
            raise ConfigurationError(
                f"environment {spec.id!r} has the action space {name_of(space)}, expected a Box, "
                "Discrete, MultiDiscrete or MultiBinary"
            )
        # What never changes is looked up here: a call costs as much as a third of the simulation.
        box = self.space if isinstance(self.space, Box) else None
        self._shape = (num_envs, *(self.space.shape or ()))
        self._kinds = "f" if box else "iub" if isinstance(self.space, MultiBinary) else "iu"
        self._counts = None if isinstance(self.space, Box) else _counts(self.space)
        self._bounds = (box.low, box.high) if box and spec.clip_actions else None
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
        if self._bounds is not None:
            action = np.clip(action, *self._bounds)
        if self._offset is not None:
            action = action + self._offset
        # A copy always: an environment may keep or change the array that it is given.
        native = action.astype(self._native_dtype)
        return native if self._native_shape == self._shape else native.reshape(self._native_shape)

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


def _counts(space: Discrete | MultiDiscrete | MultiBinary) -> NDArray[np.int64]:
    """Return how many values each part of an action has: [] or [*space.shape]."""
    if isinstance(space, MultiDiscrete):
        return space.nvec
    return np.asarray(space.n if isinstance(space, Discrete) else 2, np.int64)


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


def _observation_box(spec: EnvironmentSpec, space: gymnasium.Space[Any], key: str = "") -> Box:
    """Return the Box of one observation, or of entry ``key`` of a Dict, after conversion."""
    if not isinstance(space, Box):
        raise ConfigurationError(
            f"environment {spec.id!r} observes {' '.join(str(space).split())}"
            f"{f' as {key!r}' if key else ''}, expected a Box or a Dict of Box vectors (of a Dict, "
            "observation_keys picks the entries to use; Discrete observations are not supported "
            "yet)"
        )
    if space.dtype == np.uint8 and len(space.shape) >= 2:
        return space
    return _float_box(space, space.shape or (1,))


def _concatenated(spec: EnvironmentSpec, space: Dict, boxes: Sequence[Box]) -> Box:
    """Return the Box of several vectors behind one another."""
    if any(len(box.shape) > 1 for box in boxes):
        shapes = {key: getattr(entry, "shape", None) for key, entry in space.spaces.items()}
        raise ConfigurationError(
            f"environment {spec.id!r} observes a Dict of shapes {shapes}, expected vectors only; "
            "observation_keys picks the entries to use, of which one alone may be an image"
        )
    low, high = ([getattr(box, bound) for box in boxes] for bound in ("low", "high"))
    return Box(np.concatenate(low), np.concatenate(high), dtype=np.float32)


def _float_box(space: Box, shape: tuple[int, ...]) -> Box:
    """Return ``space`` as a float32 Box of ``shape``."""
    low, high = space.low.reshape(shape), space.high.reshape(shape)
    if np.issubdtype(space.dtype, np.floating):
        # EnvPool writes "no bound" as C++'s numeric_limits: min() is the smallest positive number.
        limits = np.finfo(low.dtype.name)
        low = np.where((low == limits.tiny) | (low == limits.min), -np.inf, low)
        high = np.where(high == limits.max, np.inf, high)
    return Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
