"""From a simulator's own observations to the plain arrays that policies see.

All simulators share it, so that a space means the same whichever library it came from. The rule:
a picture stays a picture, all else becomes a vector, and what lies in Dicts and Tuples is taken
leaf by leaf.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Tuple
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError, nearest
from ppo1_lightning.policies.spaces import IMAGE, MASK, VECTOR, name_of
from ppo1_lightning.simulators.base import EnvironmentSpec
from ppo1_lightning.simulators.entries import NUMBERS, Entry

Path = tuple[str | int, ...]
"""The keys and positions that lead to a leaf."""


class ObservationAdapter:
    """Writes batches of a simulator's observations into arrays [N, *space.shape].

    What an `Entry` becomes. Several come behind one another: vectors, then images, then the leaf
    ``action_mask``.

    Attributes:
        entries: the leaves that are used, in order.
        left_out: names of leaves that are not numbers, such as texts.
        space: what one converted observation is: a Box, or a Dict where there is more than one
            of ``vector``, images and ``action_mask`` (see `spaces.parts_of`).
        no_masks: names of leaves below an ``action_mask`` that forbid nothing.
        mask: the columns of a row ``[D]`` that are the mask, None where there is none.
        mask_shape: of the mask as the environment has it, None where there is none.
        all_numbers: whether all leaves are numbers, also those that are not used.

    Raises:
        ConfigurationError: an unsupported space, or an unknown entry in ``observation_keys``.
    """

    def __init__(self, spec: EnvironmentSpec, space: gymnasium.Space[Any]) -> None:
        found = dict(leaves(space))
        names = [leaf_name(path) for path in found]
        chosen = _chosen(spec, space, names)
        entries: dict[Path, Entry] = {}
        self.left_out: list[str] = []
        for path, leaf in found.items():
            name = leaf_name(path)
            if name not in chosen:
                continue
            if names.count(name) > 1:
                raise ConfigurationError(
                    f"environment {spec.id!r} observes two entries {name!r}, expected names of "
                    "Dicts without dots"
                )
            if path and isinstance(leaf, Box) and 0 in leaf.shape:
                continue  # nothing
            if path and not isinstance(leaf, NUMBERS) and spec.observation_keys is None:
                self.left_out.append(name)
            else:
                entries[path] = Entry(spec, leaf, name, is_mask=_mask_of(path) is not None)
        _check_masks(spec, entries)
        self.no_masks = [leaf_name(p) for p in entries if MASK in p[:-1] and not _mask_of(p)]
        order = {name: i for i, name in enumerate(chosen)}
        # a mask's items follow the numbers of the action, whatever was chosen first
        order |= {leaf_name(path): i for i, path in enumerate(found) if _mask_of(path)}
        paths = sorted(entries, key=lambda path: (entries[path].rank, order[leaf_name(path)]))
        self.entries = [entries[path] for path in paths]
        self.space = _space_of(spec, self.entries)
        sizes = [int(np.prod(entry.space.shape)) for entry in self.entries]
        ends = np.cumsum(sizes).tolist()
        slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self._parts = list(zip(paths, self.entries, slices, strict=True))
        self.mask: slice | None = None
        self.mask_shape: tuple[int, ...] | None = None
        masks = [(entry, columns) for _, entry, columns in self._parts if entry.part == MASK]
        if masks:  # behind one another
            (entry, first), (_, last) = masks[0], masks[-1]
            self.mask = slice(first.start, last.stop)
            one = len(masks) == 1
            self.mask_shape = entry.native.shape if one else (last.stop - first.start,)
        self.all_numbers = all(isinstance(leaf, NUMBERS) for leaf in found.values())

    def __call__(self, observation: Any, out: NDArray[Any]) -> None:
        """Write a batch to ``out``: an array [N, ...], or a Dict's or Tuple's of such leaves."""
        if len(self._parts) == 1:
            path, entry, _ = self._parts[0]
            entry.write(reduce(operator.getitem, path, observation), out)
            return
        for path, entry, columns in self._parts:
            entry.write(reduce(operator.getitem, path, observation), out[:, columns])


def leaves(
    space: gymnasium.Space[Any], path: Path = ()
) -> Iterator[tuple[Path, gymnasium.Space[Any]]]:
    """Yield what Dicts and Tuples hold, however deep, in their order."""
    if isinstance(space, Dict | Tuple):
        items = space.items() if isinstance(space, Dict) else enumerate(space)
        for key, inner in items:
            yield from leaves(inner, (*path, key))
    else:
        yield path, space


def leaf_name(path: Path) -> str:
    """Return the keys and positions of a path with dots between, ``""`` for none."""
    return ".".join(map(str, path))


def _chosen(spec: EnvironmentSpec, space: gymnasium.Space[Any], names: list[str]) -> list[str]:
    """Return the names of the leaves to use, in order; a key stands for all leaves below it."""
    keys = spec.observation_keys
    if keys is None:
        return names
    if not isinstance(space, Dict | Tuple):
        raise ConfigurationError(
            f"observation_keys={list(keys)} does not apply to {spec.id!r}, "
            f"whose observation is {name_of(space)} and not a Dict; expected null"
        )
    if isinstance(keys, str) or not isinstance(keys, Sequence) or not keys:
        raise ConfigurationError(
            f"observation_keys={keys!r} is not a list of names, expected some of {', '.join(names)}"
        )
    chosen: list[str] = []
    for key in keys:
        key = str(key)  # a place in a Tuple is a number on the command line
        below = [key] if key in names else [n for n in names if n.startswith(f"{key}.")]
        if not below:
            raise ConfigurationError(
                f"observation_keys has {key!r}, which {spec.id!r} does not observe; expected some "
                f"of {', '.join(names)}{nearest(key, names)}"
            )
        chosen += below
    if len(set(chosen)) < len(chosen):
        raise ConfigurationError(
            f"observation_keys={list(keys)} has a name twice, expected each one once"
        )
    return chosen


def _mask_of(path: Path) -> Path | None:
    """Return the path of the mask that a leaf is, or that it is an item of; None for others."""
    named = path[:-1] if path and isinstance(path[-1], int) else path
    return named if named and named[-1] == MASK else None


def _check_masks(spec: EnvironmentSpec, paths: Iterable[Path]) -> None:
    """Refuse several masks; a Tuple of one for each number of a MultiDiscrete is one."""
    found = sorted({leaf_name(mask) for path in paths if (mask := _mask_of(path))})
    if len(found) > 1:
        raise ConfigurationError(
            f"environment {spec.id!r} observes the masks {' and '.join(found)}, expected one; "
            "env.observation_keys picks the entries to use"
        )


def _space_of(spec: EnvironmentSpec, entries: Sequence[Entry]) -> Box | Dict:
    """Return the space of several entries, those of each part behind one another."""
    if not any(entry.part != MASK and 0 not in entry.space.shape for entry in entries):
        masked = any(entry.part == MASK for entry in entries)
        found = "nothing but an action mask" if masked else "nothing"
        raise ConfigurationError(f"environment {spec.id!r} observes {found}, expected some numbers")
    if len(entries) == 1:
        return entries[0].space
    masks = [entry.space for entry in entries if entry.part == MASK]
    vectors = [entry.space for entry in entries if entry.part == VECTOR]
    images = [entry.space for entry in entries if entry.part == IMAGE]
    parts = [(VECTOR, _concatenated(vectors))] if vectors else []
    parts += [(IMAGE if i == 0 else f"{IMAGE}_{i + 1}", space) for i, space in enumerate(images)]
    parts += [(MASK, _concatenated(masks))] if masks else []
    return parts[0][1] if len(parts) == 1 else Dict(parts)


def _concatenated(spaces: Sequence[Box]) -> Box:
    """Return the Box of several vectors behind one another."""
    low, high = (
        np.concatenate([getattr(space, bound).ravel() for space in spaces])
        for bound in ("low", "high")
    )
    return Box(low, high, dtype=np.float32)
