"""Methods that subclasses override: hooks that still run without ``super()``, and final ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ppo1_lightning.errors import ConfigurationError

Hook = Callable[..., Any]


def own(hook: Hook) -> Hook:
    """Mark a hook of this package's, which has to run whatever a subclass makes of it."""

    @functools.wraps(hook)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.hooks_run[hook.__name__] += 1
        return hook(self, *args, **kwargs)

    counted.is_own = True  # type: ignore[attr-defined]
    return counted


def complete_overrides(cls: type) -> None:
    """Let each override of a marked hook be followed by the marked one, unless it has called it."""
    for name in {
        name for base in cls.__mro__ for name, hook in vars(base).items() if _is_own(hook)
    }:
        hook = getattr(cls, name)
        if not _is_own(hook) and not hasattr(hook, "is_complete"):
            marked = next(vars(base)[name] for base in cls.__mro__ if _is_own(vars(base).get(name)))
            setattr(cls, name, _completed(hook, marked))


def final(instead: str) -> Callable[[Hook], Hook]:
    """Mark a method that a subclass cannot override, for some of the paths do without it."""

    def marked(method: Hook) -> Hook:
        method.instead = instead  # type: ignore[attr-defined]
        return method

    return marked


def refuse_overrides(cls: type) -> None:
    """Refuse a class that overrides a `final` method.

    Raises:
        ConfigurationError: it names the method, and what does the same on all paths.
    """
    for base in cls.__mro__:
        for name, method in vars(base).items():
            instead = getattr(method, "instead", None)
            if instead is not None and getattr(cls, name) is not method:
                raise ConfigurationError(
                    f"{cls.__name__} overrides {name}, which only the loss would see, "
                    f"expected {instead}"
                )


def _is_own(hook: Any) -> bool:
    return hasattr(hook, "is_own")


def _completed(override: Hook, marked: Hook) -> Hook:
    name = marked.__name__

    @functools.wraps(override)
    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.hooks_run[name]
        result = override(self, *args, **kwargs)
        if self.hooks_run[name] == before:
            marked(self, *args, **kwargs)
        return result

    hook.is_complete = True  # type: ignore[attr-defined]
    return hook
