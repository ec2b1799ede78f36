"""What the spaces of an environment mean to the algorithm."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, flatdim, flatten_space
from torch import Tensor

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.functional.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)


def distribution_for(action_space: Space[Any]) -> Distribution:
    """Return the distribution family of an action space (baselines' ``make_pdtype``).

    Raises:
        ConfigurationError: the space is none of Box, Discrete, MultiDiscrete and MultiBinary.
    """
    match action_space:
        case Box(shape=(size,)):
            return DiagonalGaussian(size)
        case Discrete():
            return Categorical(int(action_space.n))
        case MultiDiscrete():
            return MultiCategorical(tuple(int(n) for n in action_space.nvec.flatten()))
        case MultiBinary():
            return Bernoulli(int(np.prod(action_space.shape)))
    raise ConfigurationError(
        f"action space {name_of(action_space)} is not supported, "
        "expected Box (one-dimensional), Discrete, MultiDiscrete or MultiBinary"
    )


VECTOR, IMAGE, MASK = "vector", "image", "action_mask"
"""Names of an observation's parts; further images are ``image_2``, ``image_3``, ..."""


class RescaledBox(Box):
    """Numbers of which -1 (of pictures 0) and 1 stand for an environment's bounds."""


class Part(NamedTuple):
    """One part of an observation."""

    space: Box
    columns: slice | None  # of a row; None: the part is the whole observation


def parts_of(observation_space: Space[Any]) -> dict[str, Part]:
    """Return what a policy observes, by name: ``vector``, ``image``, ``image_2``, ``action_mask``.

    A Box is one of the first two. A Dict has several, and observations of it are rows ``[..., D]``
    that hold them behind one another, as ``gymnasium.spaces.flatten`` lays them out. Any other
    space has none of these.
    """
    if isinstance(observation_space, Box):
        name = VECTOR if len(observation_space.shape) == 1 else IMAGE
        return {name: Part(observation_space, None)}
    parts, end = dict[str, Part](), 0
    if not isinstance(observation_space, Dict):
        return parts
    for name, space in observation_space.items():
        if not isinstance(space, Box):
            return {}
        start, end = end, end + flatdim(space)
        parts[name] = Part(space, slice(start, end))
    return parts


def row_space(observation_space: Space[Any]) -> Box:
    """Return what one observation is as an array: a Box as it is, the row of a Dict."""
    row = flatten_space(observation_space) if isinstance(observation_space, Dict) else None
    box = observation_space if row is None else row
    assert isinstance(box, Box)
    return box


def example_rows(observation_space: Space[Any], count: int) -> Tensor:
    """Return observations ``[count, *shape]`` as a policy sees them, all 0."""
    box = row_space(observation_space)
    dtype = torch.uint8 if box.dtype == np.uint8 else torch.float32
    return torch.zeros(count, *box.shape, dtype=dtype)


def name_of(space: Space[Any]) -> str:
    """Return a space in one short line (``str`` of a Box spells out every bound)."""
    match space:
        case Box():
            return f"Box(shape={space.shape}, {space.dtype})"
        case Dict():
            return f"Dict({', '.join(f'{k}: {name_of(part)}' for k, part in space.items())})"
    return str(space)


def describe(space: Space[Any]) -> dict[str, Any]:
    """Return the space as plain containers, for a checkpoint."""
    match space:
        case Box():
            # Without the bounds, of which an image has 28,224: only how bright one is matters.
            entry = {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype)}
            if space.dtype == np.uint8 and (high := int(space.high.max())) != 255:
                entry["high"] = high
            return entry | ({"rescaled": True} if isinstance(space, RescaledBox) else {})
        case Discrete():
            return {"type": "Discrete", "n": int(space.n)}
        case MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.flatten().tolist()}
        case MultiBinary():
            return {"type": "MultiBinary", "n": int(np.prod(space.shape))}
        case Dict():
            return {"type": "Dict", "parts": [[k, describe(part)] for k, part in space.items()]}
    raise ConfigurationError(f"space {name_of(space)} is not supported")


def restore(description: dict[str, Any]) -> Space[Any]:
    """Return the space that `describe` wrote down (a Box comes back without its bounds)."""
    match description:
        case {"type": "Box", "shape": shape, "rescaled": True}:
            return RescaledBox(-np.inf, np.inf, tuple(shape), np.float32)
        case {"type": "Box", "shape": shape, "dtype": dtype}:
            bytes_to = description.get("high", 255)
            low, high = (0, bytes_to) if dtype == "uint8" else (-np.inf, np.inf)
            return Box(low, high, tuple(shape), np.dtype(dtype).type)
        case {"type": "Discrete", "n": n}:
            return Discrete(n)
        case {"type": "MultiDiscrete", "nvec": nvec}:
            return MultiDiscrete(nvec)
        case {"type": "MultiBinary", "n": n}:
            return MultiBinary(n)
        case {"type": "Dict", "parts": parts}:
            return Dict([(name, restore(part)) for name, part in parts])
    raise ConfigurationError(f"space {description!r} in the checkpoint is not supported")
