"""The way back from an update that turns out bad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppo1_lightning.errors import DivergenceError

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.on_policy import OnPolicyModule


def _gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    """Return the norm of the running mean of gradients, 0 for an optimizer without one."""
    means = [s["exp_avg"].norm() for s in optimizer.state.values() if "exp_avg" in s]
    return torch.stack(means).norm().item() if means else 0.0


class Snapshot:
    """A copy of a run's state: weights, buffers, extra state, optimizer, counters, episodes.

    It is taken on the device, without synchronising it, and needs as much memory as they do.
    """

    def __init__(self, module: OnPolicyModule, optimizer: torch.optim.Optimizer) -> None:
        self._module, self._optimizer = module, optimizer
        self._weights = _copy_of(module.state_dict())
        self._moments = {p: _copy_of(state) for p, state in optimizer.state.items()}
        self._counters, self._episodes = copy(module.counters), module.episodes.state_dict()

    def restore(self) -> None:
        """Put everything back; tensors of the module keep their place in memory."""
        self._module.load_state_dict(self._weights)
        self._optimizer.state.clear()
        self._optimizer.state.update({p: copy(state) for p, state in self._moments.items()})
        self._module.counters = self._counters
        self._module.episodes.load_state_dict(self._episodes)

    def refuse_divergence(self, measured: Mapping[str, float]) -> None:
        """Undo the update where a metric, alike on all ranks, is no number.

        Raises:
            DivergenceError: it names the gradient's norm where that is no number either, for it
                comes before all else.
        """
        for name, metric in measured.items():
            if math.isfinite(metric) or name == "explained_variance":  # of constant returns: NaN
                continue
            iteration, norm = self._module.counters.iterations, _gradient_norm(self._optimizer)
            if not math.isfinite(norm):
                name, metric = "gradient_norm", norm
            self.restore()
            raise DivergenceError(
                f"the policy diverged: {name} is {metric} after iteration {iteration}; "
                "a smaller learning_rate may help"
            )


def _copy_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy_of(item) for key, item in value.items()}
    return deepcopy(value)
