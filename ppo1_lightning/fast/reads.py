"""Which attributes a graph has frozen: those that were read while it was traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ppo1_lightning.errors import ConfigurationError

KEPT_BY_TORCH = set(vars(nn.Module())) - {"training"}
"""Where a module keeps its parts and hooks, which it looks at in each call."""

LARGEST = 1000
"""Values within an attribute that are compared in each iteration; a Trainer holds more."""

_EQUAL = (bool, int, complex, str, bytes, type(None), slice, range, Enum)
_EQUAL_IN_TORCH = (torch.dtype, torch.device, torch.layout)
_SAME = (type, FunctionType, BuiltinFunctionType, nn.Module, Tensor)
_WHOLE = {bool, int, float, complex, str, bytes, type(None), FunctionType, *_EQUAL_IN_TORCH}
"""What has nothing inside that is watched: the same object says the same."""


class _TooLargeError(Exception):
    """An attribute holds more than is watched."""


def _picture(value: Any, seen: list[Any]) -> Any:
    """Return what stands for a value: it is another one where the value has changed.

    A tensor stands for itself: its numbers are an argument of the graph, see `ModuleCall`.
    """
    seen.append(value)
    if len(seen) > LARGEST:
        raise _TooLargeError
    match value:
        case float() | np.floating():
            return repr(value)  # NaN is equal to NaN
        case np.generic():
            return value.item()
        case np.ndarray():
            return value.dtype.str, value.shape, value.tobytes()
        case MethodType():
            return id(value.__self__), value.__func__
        case dict():
            return [(_picture(k, seen), _picture(v, seen)) for k, v in value.items()]
        case list() | tuple():
            return [_picture(item, seen) for item in value]
        case set() | frozenset():
            return value.copy()
    if isinstance(value, _EQUAL + _EQUAL_IN_TORCH):
        return value
    if isinstance(value, _SAME):
        return id(value)
    return type(value), _picture(getattr(value, "__dict__", {}), seen)


class Reads:
    """What modules were asked for, and what it was."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str], tuple[nn.Module, Any, Any]] = {}
        self._parts: list[tuple[nn.Module, list[nn.Module], tuple[list[list[str]], int]]] = []

    def changed(self) -> str | None:
        """Return the name of one that is another value by now, None where all are as they were."""
        for root, parts, names in self._parts:
            now = list(root.modules())
            if len(now) != len(parts) or any(a is not b for a, b in zip(now, parts, strict=True)):
                return f"a part of {type(root).__name__}"
            if _names(now) != names:  # pruned, or no longer shared
                return f"the parameters of {type(root).__name__}"
        for (_, name), (module, value, picture) in self._found.items():
            now = getattr(module, name, None)
            if now is value and type(value) in _WHOLE:
                continue
            if _picture(now, []) != picture:
                return f"{type(module).__name__}.{name}"
        return None

    @contextmanager
    def recorded(self, root: nn.Module) -> Iterator[None]:
        """Record what is read of a module and its parts.

        Only Python itself sees such a read: meanwhile each is of a class that notes it down.

        Raises:
            ConfigurationError: something was read that is too large to be watched.
        """
        modules = list(root.modules())
        classes = [type(module) for module in modules]
        read: dict[tuple[int, str], tuple[nn.Module, Any]] = {}
        try:
            for module, its_class in zip(modules, classes, strict=True):
                module.__class__ = _noting(its_class, read)
            yield
        finally:
            for module, its_class in zip(modules, classes, strict=True):
                module.__class__ = its_class
        self._parts.append((root, modules, _names(modules)))
        for key, (module, value) in read.items():
            try:
                self._found[key] = (module, value, _picture(value, []))
            except _TooLargeError:
                raise ConfigurationError(
                    f"it reads {type(module).__name__}.{key[1]}, which is too large to be watched "
                    "for changes, expected numbers or a buffer (register_buffer)"
                ) from None


def _names(modules: Sequence[nn.Module]) -> tuple[list[list[str]], int]:
    """Return the names of each module's own parameters and buffers, and how many are different."""
    names = [[*module._parameters, *module._buffers] for module in modules]
    return names, len({id(p) for module in modules for p in module._parameters.values()})


def _noting(
    its_class: type[nn.Module], read: dict[tuple[int, str], tuple[nn.Module, Any]]
) -> type[nn.Module]:
    """Return a module's class with each attribute that is asked for noted in ``read``."""

    def get(module: nn.Module, name: str) -> Any:
        try:
            value = its_class.__getattribute__(module, name)
        except AttributeError:  # a parameter or a buffer, the graph's argument, or a module
            return its_class.__getattr__(module, name)
        # A parametrized weight is a tensor anew in each call, of parameters that are arguments.
        computed = isinstance(value, Tensor) and is_parametrized(module, name)
        if not (computed or name.startswith("__") or name in KEPT_BY_TORCH):
            read.setdefault((id(module), name), (module, value))
        return value

    return type(its_class.__name__, (its_class,), {"__getattribute__": get})
