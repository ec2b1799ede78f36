"""What a user's wrappers have counted over episodes: evaluations and resumed runs go on with it.

All their attributes of numbers, arrays and containers of them, and those of objects that they hold,
as far as they have changed since they were made. An attribute that belongs to an episode is among
them, to no effect: `reset` starts it anew. A wrapper, an environment or an object with
``state_dict()`` and ``load_state_dict(state)`` says for itself what is to be kept. Objects that go
on are copies: the old ones may be others' too, as the entries of a table.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium

from ppo1_lightning.errors import ConfigurationError, one_line
from ppo1_lightning.simulators.attributes import (
    digest,
    holds_what_was_seen,
    kept_attributes,
    left_out,
    put_attributes,
    says_itself,
)

State = dict[str, Any]
"""Plain data: ``torch.load(weights_only=True)`` reads it."""

_OURS = ("gymnasium", __name__.partition(".")[0])
_log = logging.getLogger(__name__)


class WrapperState:
    """The state of an environment's wrappers, which it had none of when this is made.

    Args:
        env: as its wrappers have made it.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._parts = _parts(env)
        first = {name: _kept_so_far(part) for name, part in self._parts.items()}
        self._initial = digest(first)
        self._left_out = {name: left_out(part, first[name]) for name, part in self._parts.items()}

    def get(self) -> State:
        """Return what has changed, by wrapper and attribute; nothing for most environments.

        A value that is not that of before and cannot be kept is told, once.

        Raises:
            ConfigurationError: a ``state_dict()`` fails, or is no plain data.
        """
        state = {}
        for name, part in self._parts.items():
            try:
                kept, initial = kept_attributes(part, set()), self._initial[name]
            except Exception as error:  # the user's own
                raise ConfigurationError(
                    f"the state_dict() of {name} among env.wrappers cannot be kept: "
                    f"{one_line(error)}"
                ) from error
            changed = {k: v for k, v in kept.items() if k not in initial or digest(v) != initial[k]}
            for attribute, objects in left_out(part, kept).items():
                if not _are_same(objects, self._left_out[name].get(attribute)):
                    _tell_left_out(f"{name}.{attribute}", type(objects[-1]).__name__)
            if changed:
                again = {k: v for k, v in kept.items() if holds_what_was_seen(v)}
                state[name] = {**changed, **again}
        return state

    def put(self, state: State) -> None:
        """Go on with what `get` has returned; a wrapper that is new starts as it is."""
        for name, kept in state.items():
            if name in self._parts:
                put_attributes(self._parts[name], kept, {})


def _parts(env: Any) -> dict[str, Any]:
    """Return what keeps a state among an environment and its wrappers, by class and position."""
    found: dict[str, Any] = {}
    while True:
        is_wrapper = isinstance(env, gymnasium.Wrapper)
        is_own = type(env).__module__.partition(".")[0] not in _OURS
        if says_itself(env) or (is_wrapper and is_own):
            name = type(env).__name__
            count = sum(key.partition(" ")[0] == name for key in found)
            found[f"{name} {count + 1}" if count else name] = env
        if not is_wrapper:
            return found
        env = env.env


def _kept_so_far(part: Any) -> dict[str, Any]:
    try:
        return kept_attributes(part, set())
    except Exception:  # a state_dict() that needs a reset before
        return {}


def _are_same(objects: list[Any], others: list[Any] | None) -> bool:
    return (
        others is not None
        and len(objects) == len(others)
        and all(map(operator.is_, objects, others))
    )


@functools.cache  # once in each process, not for each environment
def _tell_left_out(name: str, kind: str) -> None:
    _log.warning(
        "env.wrappers: %s starts anew in evaluations and resumed runs, for a %s cannot be kept; "
        "expected numbers, words, arrays or containers of them, or a state_dict() and a "
        "load_state_dict(state)",
        name,
        kind,
    )


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
