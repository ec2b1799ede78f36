"""From a config's nodes to the objects that they describe, with mistakes told in one line."""

from __future__ import annotations

import inspect
import re
import sys
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.errors import ConfigurationError, nearest, one_line


def make(config: DictConfig, key: str, kind: Any, **arguments: Any) -> Any:
    """Return what the node ``key`` describes, which has to be a ``kind``.

    What it names is imported and called: only for configs that the user has chosen.

    Raises:
        ConfigurationError: it describes nothing, or something else.
    """
    node = OmegaConf.select(config, key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        hint = "; null leaves it out" if "." in key else ""
        raise ConfigurationError(f"{key}={node} is not a config with a _target_{hint}")
    try:
        made = instantiate(node, **arguments, _convert_="all")
    except TypeError as error:  # Hydra's own; those of what it calls come as its exceptions
        raise ConfigurationError(f"{key}: {one_line(error)}") from error
    except InstantiationException as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))
        target = str(node._target_)
        if unknown is None or unknown[1] not in node or unknown[1] in _arguments(target):
            raise
        raise ConfigurationError(
            f"{key}.{unknown[1]}: {target.rpartition('.')[2]} has no such argument, "
            f"~{key}.{unknown[1]} leaves it out{nearest(unknown[1], _arguments(target))}"
        ) from error
    if not isinstance(made, kind):
        raise ConfigurationError(
            f"{key}._target_={node._target_} makes a {type(made).__name__}, "
            f"expected a {kind.__name__}"
        )
    return made


def nearest_target(error: BaseException) -> str:
    """Return what may have been meant where Hydra cannot find or call a ``_target_``, or ``""``."""
    text = str(error)
    if re.search(r"missing \d+ required positional arguments?: 'env'", text):
        return "; a wrapper has _partial_: true beside its _target_"
    found = re.search(r"Error locating target '([\w.]+)\.(\w+)'", text)
    module = sys.modules.get(found[1]) if found else None  # which Hydra has imported if it can be
    return nearest(found[2], vars(module)) if found and module else ""


_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}


def check_scalars(config: DictConfig, key: str, called: type) -> None:
    """Check the arguments of a node that can only be numbers or flags, as a class annotates them.

    For a class of another library's that does not look at them itself.

    Raises:
        ConfigurationError: one is something else.
    """
    node, hints = OmegaConf.select(config, key), get_type_hints(called.__init__)
    for name, value in node.items() if isinstance(node, DictConfig) else ():
        hint = hints.get(str(name), Any)
        taken = get_args(hint) or (hint,)
        if set(taken) <= set(_SCALARS) and not any(_is_a(value, kind) for kind in taken):
            expected = " or ".join(_SCALARS[kind] for kind in taken)
            raise ConfigurationError(f"{key}.{name}={value!r} is not {expected}")


def _is_a(value: object, kind: type) -> bool:
    """Tell whether a value is a scalar of a kind; 1e6 is a whole number."""
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return kind is float or value == value // 1


def _arguments(target: str) -> set[str]:
    """Return the names of what a class, or what it comes from, takes."""
    made_by = get_object(target)
    takers = [vars(c).get("__init__") for c in getattr(made_by, "__mro__", ())] or [made_by]
    written = [inspect.signature(taker) for taker in takers if inspect.isfunction(taker)]
    return {name for signature in written for name in signature.parameters} - {"self"}
