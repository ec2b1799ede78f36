"""What a user's wrappers have counted over episodes: evaluations and resumed runs go on with it.

All their attributes of numbers, arrays and containers of them, and those of objects that they hold,
as far as they have changed since they were made. An attribute that belongs to an episode is among
them, to no effect: `reset` starts it anew. A wrapper, an environment or an object with
``state_dict()`` and ``load_state_dict(state)`` says for itself what is to be kept. Objects that go
on are copies: the old ones may be others' too, as the entries of a table.
"""

from __future__ import annotations

import copy
import enum
import logging
import sys
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from ppo1_lightning.errors import ConfigurationError, one_line

State = dict[str, Any]
"""Plain data: ``torch.load(weights_only=True)`` reads it."""

_GYMNASIUMS = {"env", "spec", "metadata", "reward_range", "render_mode", "np_random"}
"""And those with a ``_`` before them: what each environment has."""

_OURS = ("gymnasium", __name__.partition(".")[0])
_log = logging.getLogger(__name__)

_DEPTH = 6
"""Objects within objects."""


class _NotPlainError(Exception):
    """A value that a checkpoint cannot hold."""

    def __init__(self) -> None:
        super().__init__("it is no plain data")


class WrapperState:
    """The state of an environment's wrappers, which it had none of when this is made.

    Args:
        env: as its wrappers have made it.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._parts = _parts(env)
        self._initial = {name: _initial(part) for name, part in self._parts.items()}

    def get(self) -> State:
        """Return what has changed, by wrapper and attribute; nothing for most environments.

        Raises:
            ConfigurationError: a ``state_dict()`` fails, or is no plain data.
        """
        state = {}
        for name, part in self._parts.items():
            try:
                kept, initial = _kept(part, set()), self._initial[name]
            except Exception as error:  # the user's own
                raise ConfigurationError(
                    f"the state_dict() of {name} among env.wrappers cannot be kept: "
                    f"{one_line(error)}"
                ) from error
            changed = {
                k: v for k, v in kept.items() if k not in initial or _digest(v) != initial[k]
            }
            if changed:
                again = {k: v for k, v in kept.items() if _holds_what_was_seen(v)}
                state[name] = {**changed, **again}
        return state

    def put(self, state: State) -> None:
        """Go on with what `get` has returned; a wrapper that is new starts as it is."""
        for name, kept in state.items():
            if name in self._parts:
                _put(self._parts[name], kept, {})


def _parts(env: Any) -> dict[str, Any]:
    """Return what keeps a state among an environment and its wrappers, by class and position."""
    found: dict[str, Any] = {}
    while True:
        is_wrapper = isinstance(env, gymnasium.Wrapper)
        is_own = type(env).__module__.partition(".")[0] not in _OURS
        if _says_itself(env) or (is_wrapper and is_own):
            name = type(env).__name__
            count = sum(key.partition(" ")[0] == name for key in found)
            found[f"{name} {count + 1}" if count else name] = env
        if not is_wrapper:
            return found
        env = env.env


def _says_itself(value: Any) -> bool:
    kind = type(value)
    return callable(getattr(kind, "state_dict", None)) and callable(
        getattr(kind, "load_state_dict", None)
    )


def _initial(part: Any) -> Any:
    try:
        return _digest(_kept(part, set()))
    except Exception:  # a state_dict() that needs a reset before
        return {}


def _kept(part: Any, seen: set[int], depth: int = 0) -> dict[str, Any]:
    """Return a wrapper's or an object's plain attributes; each object where it is seen first."""
    if _says_itself(part):
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


def _put(part: Any, kept: dict[str, Any], copies: dict[int, Any]) -> None:
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
        known = not _says_itself(value)
    if depth == _DEPTH or not hasattr(value, "__dict__") or isinstance(value, enum.Enum | type):
        raise _NotPlainError
    if known and not _says_itself(value):
        raise _NotPlainError
    if id(value) in seen:
        return "seen", None
    seen.add(id(value))
    return "object", _kept(value, seen, depth + 1)


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
                own = current if _says_itself(current) else copy.copy(current)
                copies[id(current)] = own
                _put(own, content, copies)
            return copies[id(current)]
    items = [_value(item, _item(current, i), copies) for i, item in enumerate(content)]
    if kind == "deque":
        return deque(items, maxlen=getattr(current, "maxlen", None))
    return _SEQUENCES[kind](items)


def _holds_what_was_seen(plain: Any) -> bool:
    """Whether an object is among it that another attribute has been kept with."""
    if isinstance(plain, dict):
        return any(map(_holds_what_was_seen, plain.values()))
    is_seen = isinstance(plain, tuple) and plain[:1] == ("seen",)
    return is_seen or (isinstance(plain, list | tuple) and any(map(_holds_what_was_seen, plain)))


def _item(container: Any, key: Any) -> Any:
    """Return what an object is to be put into, None where there is none."""
    try:
        return container[_value(key, None, {})]
    except (TypeError, LookupError):
        return None


def _digest(plain: Any) -> Any:
    """Return what stands for plain data, with checksums in the place of arrays."""
    match plain:
        case Tensor():
            content = plain.contiguous().reshape(-1).view(torch.uint8).numpy()
            return plain.dtype, plain.shape, zlib.crc32(content.tobytes())
        case dict():
            return {name: _digest(value) for name, value in plain.items()}
        case list() | tuple():
            return [_digest(value) for value in plain]
    return plain


def own_wrapper_states(states: Sequence[State], own: Iterable[int]) -> list[State]:
    """Return those of some environments; where there are fewer, in turn; nothing of none."""
    return [states[i % len(states)] for i in own] if states else []


def watched(make: Callable[[], gymnasium.Env[Any, Any]], state: State | None) -> gymnasium.Env:
    """Make an environment that goes on with a state, and whose `wrapper_state()` says its own."""
    env = make()
    kept = WrapperState(env)
    kept.put(state or {})
    env.wrapper_state = kept.get  # type: ignore[attr-defined]  # vector environments call it
    return env
