"""A module that is loaded when it is used, and not when another one imports it.

TorchMetrics, which Lightning imports, imports ``scipy.signal`` to give it a name that it lacks: 0.8
of the 4.4 seconds that a command took to start. The standard library's ``LazyLoader`` would load it
at that question.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_lock = threading.RLock()
_loading: list[ModuleType] = []


class _Late(ModuleType):
    """A module that has not been executed; the first question for what it lacks does so."""

    def __getattr__(self, name: str) -> Any:
        with _lock:  # another thread waits until it is loaded
            if type(self) is _Late and self not in _loading:
                _load(self)
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        getattr(self, "__all__", None)  # a question as any other
        return dir(self)


def _load(module: ModuleType) -> None:
    _loading.append(module)  # what it asks itself for meanwhile, it has or has not
    try:
        module.__loader__.exec_module(module)  # type: ignore[union-attr]
        module.__class__ = ModuleType
    finally:
        _loading.remove(module)


def import_late(name: str, **known: Any) -> None:
    """Put a module among the imported ones that is executed when it is asked for what is unknown.

    Nothing where it is imported already, or not installed.

    Args:
        known: what it answers before that.
    """
    parent = name.partition(".")[0]
    if name in sys.modules or importlib.util.find_spec(parent) is None:
        return
    if (spec := importlib.util.find_spec(name)) is None:
        return
    module = importlib.util.module_from_spec(spec)
    vars(module).update(known)
    module.__class__ = _Late
    sys.modules[name] = module


def hamming(*arguments: Any, **options: Any) -> Any:
    """Return SciPy's window; it is what TorchMetrics sets as ``scipy.signal.hamming``."""
    return importlib.import_module("scipy.signal.windows").hamming(*arguments, **options)
