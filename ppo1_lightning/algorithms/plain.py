"""Plain data: all that ``torch.load(weights_only=True)`` reads, and so all a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from ppo1_lightning.errors import ConfigurationError

_SCALARS = (bool, int, float, complex, str, bytes)


def plain(value: Any) -> Any:
    """Return a value with all that has a plain counterpart in its place; the rest as it is.

    Numbers of NumPy, tensors of one number, paths and OmegaConf's containers have one, and so do
    members of an enumeration of numbers or strings.
    """
    match value:
        case np.generic():
            return value.item()
        case np.ndarray():
            return value.tolist()
        case Tensor(ndim=0):
            return value.item()
        case Path():
            return str(value)
        case DictConfig() | ListConfig():
            return plain(OmegaConf.to_container(value, resolve=True))
        case Enum() if isinstance(value, _SCALARS):
            return value.value
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() if type(value) in (list, tuple, set):
            return type(value)(map(plain, value))
    return value


def plain_settings(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's or scheduler's state with plain settings; its tensors stay tensors."""
    return {
        name: item if name == "state" else plain(item)  # steps are tensors of one number
        for name, item in state.items()
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    kinds = (type(None), Tensor, torch.dtype, torch.device)
    return type(value) in _SCALARS or isinstance(value, kinds)


def plain_hyperparameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters as plain data.

    Raises:
        ConfigurationError: one of them is not and has no plain counterpart.
    """
    found = {name: plain(value) for name, value in given.items()}
    for name, value in found.items():
        if not _is_plain(value):
            raise ConfigurationError(
                f"the hyperparameter {name} is a {type(value).__name__}, which no checkpoint can "
                "hold as plain data, expected numbers, strings and containers of them, or "
                f"save_hyperparameters(ignore=[{name!r}])"
            )
    return found
