"""Which plain attributes a graph has frozen: those that were read while it was traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

PLAIN = (bool, int, float, complex, str, bytes, type(None), tuple, np.generic)


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
            value = its_class.__getattribute__(module, name)
            if isinstance(value, PLAIN) and not name.startswith("__"):
                self._found.setdefault((id(module), name), (module, value))
            return value

        return type(its_class.__name__, (its_class,), {"__getattribute__": get})
