"""Which plain attributes a graph has frozen: those that were read while it was traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from torch import nn

PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)

KEPT_BY_TORCH = set(vars(nn.Module())) - {"training"}
"""Where a module keeps its parts and hooks, which it looks at in each call."""


def _is_plain(value: Any) -> bool:
    """Whether a value, or all that it holds, can be compared with what it was before."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(map(_is_plain, vars(value).values()))
    return isinstance(value, PLAIN)


class Reads:
    """Numbers and other plain values that modules were asked for, and what they were."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str], tuple[nn.Module, Any]] = {}

    def changed(self) -> str | None:
        """Return the name of one that is another value by now, None where all are as they were."""
        for (_, name), (module, value) in self._found.items():
            if getattr(module, name, None) != value:
                return f"{type(module).__name__}.{name}"
        return None

    @contextmanager
    def recorded(self, root: nn.Module) -> Iterator[None]:
        """Record what is read of a module and its parts.

        Only Python itself sees such a read: meanwhile each is of a class that notes it down.
        """
        modules = list(root.modules())
        classes = [type(module) for module in modules]
        try:
            for module, its_class in zip(modules, classes, strict=True):
                module.__class__ = self._noting(its_class)
            yield
        finally:
            for module, its_class in zip(modules, classes, strict=True):
                module.__class__ = its_class

    def _noting(self, its_class: type[nn.Module]) -> type[nn.Module]:
        def get(module: nn.Module, name: str) -> Any:
            try:
                value = its_class.__getattribute__(module, name)
            except AttributeError:  # a parameter, a buffer, which may be None, or a module
                value = its_class.__getattr__(module, name)
            key = (id(module), name)
            own = name.startswith("__") or name in KEPT_BY_TORCH
            if not own and key not in self._found and _is_plain(value):
                self._found[key] = (module, deepcopy(value))
            return value

        return type(its_class.__name__, (its_class,), {"__getattribute__": get})
