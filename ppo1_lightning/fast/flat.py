"""Where parameters lie in the flat vectors that graphs read and write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class FlatState(NamedTuple):
    """What a step changes."""

    flat: Tensor  # all parameters, [P]
    moments: tuple[Tensor, ...]  # of the optimizer, [P] each, see `steps.Step`
    gradient: Tensor  # [P], where it is summed over ranks


def flat_vector(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors one after the other, ``[P]``."""
    return torch.cat([tensor.flatten() for tensor in tensors])


class FlatLayout:
    """The parameters one after the other, part by part.

    Args:
        parameters: all of them by name, in the module's order.
        parts: names of those that learn together.
    """

    def __init__(self, parameters: Mapping[str, Tensor], parts: Sequence[Sequence[str]]) -> None:
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._parts = parts
        self.names = [name for part in parts for name in part]

    def split(self, vector: Tensor) -> Sequence[Tensor]:
        """Split a vector ``[P]`` by parameters, in the order of `names`."""
        return vector.split([self._shapes[name].numel() for name in self.names])

    def by_part(self, vector: Tensor) -> Sequence[Tensor]:
        """Split a vector ``[P]`` by parts."""
        sizes = [sum(self._shapes[name].numel() for name in part) for part in self._parts]
        return vector.split(sizes)

    def views(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """Return the parameters, in the module's order, as views of the parts' vectors."""
        views = {}
        for names, flat in zip(self._parts, flats, strict=True):
            pieces = flat.split([self._shapes[name].numel() for name in names])
            for name, piece in zip(names, pieces, strict=True):
                views[name] = piece.view(self._shapes[name])
        return [views[name] for name in self._shapes]
