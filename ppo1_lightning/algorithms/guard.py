"""The state of a run before an update, to go back to where the update turns out bad."""

from __future__ import annotations

from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot:
    """A copy of a module's parameters, buffers and extra state, and of its optimizer's state.

    It is taken on the device, without synchronising it, and needs as much memory as they do.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._weights = _copy_of(module.state_dict())
        self._moments = {p: _copy_of(state) for p, state in optimizer.state.items()}

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put everything back; tensors of the module keep their place in memory."""
        module.load_state_dict(self._weights)
        optimizer.state.clear()
        optimizer.state.update({p: copy(state) for p, state in self._moments.items()})


def _copy_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy_of(item) for key, item in value.items()}
    return deepcopy(value)
