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

    @classmethod
    def started(cls, flat: Tensor, starts: Mapping[str, float]) -> FlatState:
        """Return parameters with moments that start at these numbers."""
        moments = tuple(torch.full_like(flat, start) for start in starts.values())
        return cls(flat, moments, torch.empty_like(flat))


def flat_vector(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors one after the other, ``[P]``."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def flattened(
    parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, starts: Mapping[str, float]
) -> FlatState:
    """Lay parameters and moments out in flat vectors, of which they become views.

    Args:
        parameters: in the order of the vectors.
        optimizer: keeps moments of these names for each of them once it has taken a step.
        starts: numbers that its moments start with.
    """
    state = FlatState.started(flat_vector(p.detach() for p in parameters), starts)
    sizes = [parameter.numel() for parameter in parameters]
    pieces = (vector.split(sizes) for vector in (state.flat, *state.moments))
    for parameter, *own in zip(parameters, *pieces, strict=True):
        values, *moments = (piece.view_as(parameter) for piece in own)
        parameter.data = values
        kept = optimizer.state[parameter]
        for name, moment in zip(starts, moments, strict=True):
            if name in kept:
                moment.copy_(kept[name])
            kept[name] = moment
        kept["step"] = torch.tensor(float(kept.get("step", 0)))
    return state


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
