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
    """Turns batches of a simulator's observations into arrays [N, *space.shape].

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

    def __call__(self, observation: Any) -> NDArray[Any]:
        """Convert a batch: an array [N, ...], or a mapping of arrays [N, ...] for a Dict space."""
        if self._keys is None:
            return self._convert(observation)
        if len(self._keys) == 1:
            return self._convert(observation[self._keys[0]])
        parts = [np.asarray(observation[key]) for key in self._keys]
        flat = [part.reshape(len(part), -1) for part in parts]
        return np.concatenate(flat, axis=1, dtype=np.float32, casting="unsafe")

    def _convert(self, observation: NDArray[Any]) -> NDArray[Any]:
        converted = np.asarray(observation, dtype=self.space.dtype)
        return converted.reshape(len(converted), *self.space.shape)


class ActionAdapter:
    """Checks a policy's actions and turns them into those of the simulator.

    Policies see the simplest space that holds the same actions: Discrete and MultiDiscrete start
    at 0, an integer Box is a MultiDiscrete, a float Box is float32, and all have one dimension.

    Attributes:
        space: the space that policies act in.

    Raises:
        ConfigurationError: an unsupported space.
    """

    def __init__(self, spec: EnvironmentSpec, space: gymnasium.Space[Any]) -> None:
        self._clip = spec.clip_actions
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
        self._native_shape = space.shape or ()
        self._native_dtype = space.dtype

    def __call__(self, action: NDArray[Any], num_envs: int) -> NDArray[Any]:
        """Return a new array of the simulator's actions; ``action`` itself is never changed.

        Args:
            action: [num_envs, *space.shape]; integers, for a Box floats.
            num_envs: N.

        Raises:
            ConfigurationError: a wrong shape or dtype, a value out of range or not finite.
        """
        action = np.asarray(action)
        self._check_kind(action, num_envs)
        self._check_values(action)
        if self._clip and isinstance(self.space, Box):
            action = np.clip(action, self.space.low, self.space.high)
        if self._offset is not None:
            action = action + self._offset
        # A copy always: an environment may keep or change the array that it is given.
        return action.astype(self._native_dtype).reshape(num_envs, *self._native_shape)

    def _check_kind(self, action: NDArray[Any], num_envs: int) -> None:
        shape = (num_envs, *(self.space.shape or ()))
        if action.shape != shape:
            raise ConfigurationError(
                f"action has the shape {action.shape}, expected {shape}: one {self.space} for each "
                f"of {num_envs} environments"
            )
        kinds, expected = ("f", "floats") if isinstance(self.space, Box) else ("iu", "integers")
        kinds += "b" if isinstance(self.space, MultiBinary) else ""
        if action.dtype.kind not in kinds:
            raise ConfigurationError(
                f"action has the dtype {action.dtype}, expected {expected} for {self.space}"
            )

    def _check_values(self, action: NDArray[Any]) -> None:
        if isinstance(self.space, Box):
            good, expected = np.isfinite(action), "a finite number"
        else:
            count = _counts(self.space)
            good, expected = (action >= 0) & (action < count), f"0 to {(count - 1).tolist()}"
        if not good.all():
            row = int(np.argwhere(~good)[0][0])
            raise ConfigurationError(
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
