"""Whether a checkpoint holds what a run needs to go on, before anything is made of it."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from torch import Tensor

from ppo1_lightning.errors import ConfigurationError

_PROGRESS = ("total", "current")

_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg"}
"""What PyTorch's optimizers and ours keep of each weight; others keep less, as Adafactor does."""


def check_resumable(checkpoint: dict[str, Any]) -> None:
    """Raise `ConfigurationError` where a run could not go on from a checkpoint.

    It looks at what Lightning restores, which trusts it: the loops' progress, the callbacks'
    states and the optimizers'.
    """
    parts = {
        "loops": _are_loops,
        "callbacks": _are_states,
        "pytorch-lightning_version": _is_version,
        "epoch": _is_count,
        "global_step": _is_count,
    }
    damaged = [name for name, is_right in parts.items() if not is_right(checkpoint.get(name))]
    optimizers = checkpoint.get("optimizer_states")
    if not _are_optimizers(optimizers, checkpoint["state_dict"]):
        damaged.append("optimizer_states")
    if damaged:
        raise ConfigurationError(f"the checkpoint is damaged: no valid {', '.join(damaged)} in it")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\d+\.\d+", value) is not None


def _are_states(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(state, dict) for state in value.values())


def _are_loops(value: Any) -> bool:
    """Whether there is the progress of a fit loop."""
    fit = value.get("fit_loop") if isinstance(value, dict) else None
    if not (isinstance(fit, dict) and _are_states(value) and _are_states(fit)):
        return False
    batches = fit.get("epoch_loop.batch_progress", {})
    return all(
        isinstance(batches.get(part), dict) and all(map(_is_count, batches[part].values()))
        for part in _PROGRESS
    )


def _are_optimizers(states: Any, weights: dict[str, Any]) -> bool:
    """Whether each has groups of parameters, and finite numbers of their shapes."""
    if not (isinstance(states, list) and all(isinstance(state, dict) for state in states)):
        return False
    return all(_is_optimizer(s.get("state"), s.get("param_groups"), weights) for s in states)


def _is_optimizer(state: Any, groups: Any, weights: dict[str, Any]) -> bool:
    lists = isinstance(groups, list) and groups and _are_states(dict(enumerate(groups)))
    if not (lists and _are_states(state)):
        return False
    if not all(_are(int, group.get("params")) for group in groups):
        return False
    if not all(_are(str, group.get("param_names", [])) for group in groups):
        return False
    named = (zip(g["params"], g.get("param_names", []), strict=False) for g in groups)
    names = dict(chain.from_iterable(named))
    return all(
        _is_of(name, tensor, weights.get(names.get(number, "")))
        for number, numbers in state.items()
        for name, tensor in numbers.items()
        if isinstance(tensor, Tensor)
    )


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _is_of(name: str, tensor: Tensor, weight: Any) -> bool:
    """Whether numbers are finite and, of a moment, as many as a weight has, where it is known."""
    fits = name not in _MOMENTS or not isinstance(weight, Tensor) or tensor.shape == weight.shape
    return fits and bool(tensor.isfinite().all())
