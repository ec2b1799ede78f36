"""The attributes of a user's object as plain data, which a checkpoint holds, and back."""

from __future__ import annotations

import copy
import enum
import inspect
import logging
import random
import sys
import zlib
from collections import OrderedDict, deque
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_GYMNASIUMS = {
    *("env", "spec", "cached_spec", "metadata", "reward_range", "render_mode", "np_random"),
    "wrapper_state",  # ours
}
"""And those with a ``_`` before them: what each environment has."""

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
"""What episodes are drawn from: each environment has its own, seeded anew."""

_DEPTH = 6
"""Objects within objects."""


class _NotPlainError(Exception):
    """A value that a checkpoint cannot hold."""

    def __init__(self) -> None:
        super().__init__("it is no plain data")


def says_itself(value: Any) -> bool:
    """Whether an object has a ``state_dict()`` and a ``load_state_dict(state)``."""
    kind = type(value)
    return callable(getattr(kind, "state_dict", None)) and callable(
        getattr(kind, "load_state_dict", None)
    )


def kept_attributes(part: Any, seen: set[int], depth: int = 0) -> dict[str, Any]:
    """Return a wrapper's or an object's plain attributes; each object where it is seen first."""
    if says_itself(part):
        return {"state_dict()": _plain(part.state_dict(), seen, depth)}
    kept = {}
    for name, value in vars(part).items():
        if isinstance(part, gymnasium.Env) and name.lstrip("_") in _GYMNASIUMS:
            continue
        try:
            kept[name] = _plain(value, seen, depth)
        except _NotPlainError:
            continue
    return kept


def left_out(part: Any, kept: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what is not kept of a wrapper or an object, and of objects that it holds.

    By attribute, a container's values one by one. Functions and generators of random numbers are
    none of it: they are as they were made.
    """
    found = {}
    for name, value in vars(part).items() if not says_itself(part) else ():
        is_computed = isinstance(inspect.getattr_static(type(part), name, None), cached_property)
        if is_computed or name.lstrip("_") in _GYMNASIUMS:
            continue
        match kept.get(name):
            case ("object", content):
                inner = left_out(value, content)
                found |= {f"{name}.{attribute}": objects for attribute, objects in inner.items()}
            case _ if name not in kept:
                items = value.values() if isinstance(value, dict) else value
                objects = [*items] if isinstance(value, _CONTAINERS) else [value]
                if objects := [o for o in objects if not _is_as_it_was_made(o)]:
                    found[name] = objects
    return found


def _is_as_it_was_made(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, _GENERATORS)


def put_attributes(part: Any, kept: dict[str, Any], copies: dict[int, Any]) -> None:
    """Write attributes; ``copies`` has those of objects by the id of the old one."""
    for name, value in kept.items():
        if name == "state_dict()":
            part.load_state_dict(_value(value, None, copies))
            continue
        try:
            vars(part)[name] = _value(value, vars(part).get(name), copies)
        except _NotPlainError:
            _log.warning(
                "env.wrappers: %s.%s starts anew, for it holds objects that are not there when the "
                "wrapper is made; expected a state_dict() and a load_state_dict(state)",
                type(part).__name__,
                name,
            )


_SEQUENCES: dict[str, type] = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
_CONTAINERS = (dict, *_SEQUENCES.values())


def _plain(value: Any, seen: set[int], depth: int) -> Any:
    """Return a value as plain data: numbers and words as they are, all else as (kind, content).

    Raises:
        _NotPlainError: it is none, such as a generator of random numbers, a function, a file.
    """
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    match value:
        case Tensor():
            return "tensor", value.detach().cpu()
        case np.generic() | np.ndarray():
            try:
                array = torch.from_numpy(np.array(value))
            except (TypeError, ValueError) as error:  # of objects, or in another byte order
                raise _NotPlainError from error
            return ("number" if isinstance(value, np.generic) else "array"), array
        case enum.Enum():
            return "enum", _plain(value.value, seen, depth)
        case dict():
            if depth == _DEPTH:
                raise _NotPlainError
            pairs = [
                (_plain(k, seen, depth + 1), _plain(v, seen, depth + 1)) for k, v in value.items()
            ]
            return ("dict" if type(value) in (dict, OrderedDict) else "own dict"), pairs
    if type(value) in _SEQUENCES.values() and depth < _DEPTH:
        return type(value).__name__, [_plain(item, seen, depth + 1) for item in value]
    kind = type(value).__module__.partition(".")[0]
    known = kind in sys.stdlib_module_names or kind in ("numpy", "gymnasium")
    if isinstance(value, gymnasium.Env | gymnasium.Space) or callable(value):
        known = not says_itself(value)
    if depth == _DEPTH or not hasattr(value, "__dict__") or isinstance(value, type):
        raise _NotPlainError
    if known and not says_itself(value):
        raise _NotPlainError
    if id(value) in seen:
        return "seen", None
    seen.add(id(value))
    return "object", kept_attributes(value, seen, depth + 1)


def _value(plain: Any, current: Any, copies: dict[int, Any]) -> Any:
    """Return what `_plain` was given; objects are copies of the ``current`` ones.

    Raises:
        _NotPlainError: there is no such object.
    """
    if not isinstance(plain, tuple):
        return plain
    kind, content = plain
    match kind:
        case "tensor":
            return content
        case "array":
            return content.numpy().copy()
        case "number":
            return content.numpy()[()]
        case "enum":
            if not isinstance(current, enum.Enum):
                raise _NotPlainError
            try:
                return type(current)(_value(content, None, copies))
            except ValueError as error:  # it has other members now
                raise _NotPlainError from error
        case "dict" | "own dict":
            items = {
                _value(k, None, copies): _value(v, _item(current, k), copies) for k, v in content
            }
            if kind == "dict":
                return items
            if not isinstance(current, dict):
                raise _NotPlainError
            own = copy.copy(current)  # it may be a Counter, or have a default
            own.clear()
            own.update(items)
            return own
        case "object" | "seen":
            if current is None or (kind == "seen" and id(current) not in copies):
                raise _NotPlainError
            if kind == "object":
                own = current if says_itself(current) else copy.copy(current)
                copies[id(current)] = own
                put_attributes(own, content, copies)
            return copies[id(current)]
    items = [_value(item, _item(current, i), copies) for i, item in enumerate(content)]
    if kind == "deque":
        return deque(items, maxlen=getattr(current, "maxlen", None))
    return _SEQUENCES[kind](items)


def _item(container: Any, key: Any) -> Any:
    """Return what an object is to be put into, None where there is none."""
    try:
        return container[_value(key, None, {})]
    except (TypeError, LookupError):
        return None


def holds_what_was_seen(plain: Any) -> bool:
    """Whether an object is among it that another attribute has been kept with."""
    if isinstance(plain, dict):
        return any(map(holds_what_was_seen, plain.values()))
    is_seen = isinstance(plain, tuple) and plain[:1] == ("seen",)
    return is_seen or (isinstance(plain, list | tuple) and any(map(holds_what_was_seen, plain)))


def digest(plain: Any) -> Any:
    """Return what stands for plain data, with checksums in the place of arrays."""
    match plain:
        case Tensor():
            content = plain.contiguous().reshape(-1).view(torch.uint8).numpy()
            return plain.dtype, plain.shape, zlib.crc32(content.tobytes())
        case dict():
            return {name: digest(value) for name, value in plain.items()}
        case list() | tuple():
            return [digest(value) for value in plain]
    return plain
