"""Gymnasium's registry, and what registers itself there when it is imported."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

import gymnasium

from ppo1_lightning.errors import ConfigurationError

ATARI = "ALE/"
"""What ids of Atari games begin with, as ``ale_py`` registers them."""


def is_atari(env_id: str) -> bool:
    """Whether an id is one of ``ale_py``'s, installed or not."""
    return env_id.removeprefix("ale_py:").startswith(ATARI)


def registered() -> list[str]:
    """Return every id that Gymnasium can make, ``ale_py``'s where that is installed."""
    with suppress(ImportError):
        importlib.import_module("ale_py")
    return [env_id for env_id in gymnasium.registry if not _is_old(env_id)]


def is_registered(env_id: str) -> bool:
    """Tell whether Gymnasium can make an id.

    Raises:
        ConfigurationError: it is one of ``ale_py``'s, which is not installed.
    """
    if env_id.startswith(ATARI):
        try:
            importlib.import_module("ale_py")
        except ImportError as error:
            raise ConfigurationError(
                f"environment {env_id!r} needs the package {error.name}, expected the extra "
                "`atari`: pip install 'ppo1-lightning[atari]', or EnvPool's "
                f"{env_id.removeprefix(ATARI)!r}"
            ) from error
    return env_id in gymnasium.registry and not _is_old(env_id)


def _is_old(env_id: str) -> bool:
    """Whether ``ale_py`` has an id for old code only, such as Pong-v4."""
    is_ale_s = str(gymnasium.registry[env_id].entry_point).startswith("ale_py")
    return is_ale_s and not env_id.startswith(ATARI)


def of_module(module: str) -> list[str]:
    """Return the ids of environments that are classes or functions of a module's package."""
    return [
        env_id
        for env_id, spec in gymnasium.registry.items()
        if _module_of(spec.entry_point).split(".")[0] == module.split(".")[0]
    ]


def _module_of(entry_point: Any) -> str:
    if isinstance(entry_point, str):
        return entry_point.partition(":")[0]
    return getattr(entry_point, "__module__", "")
