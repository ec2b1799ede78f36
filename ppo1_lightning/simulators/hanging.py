"""Calls that do not return: which call of a simulator a thread is in, seen from another thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ppo1_lightning.simulators import make_adapters
from ppo1_lightning.simulators.failures import index_of
from ppo1_lightning.simulators.vector import VectorSimulator

_STEPPING = {
    VectorSimulator.reset.__code__: "the first reset",
    VectorSimulator.receive.__code__: "a step",
}
_CALLS = {
    make_adapters.__code__: "the making",
    VectorSimulator.__init__.__code__: "the making",
    VectorSimulator.close.__code__: "the closing",
    **_STEPPING,
}
"""What an environment does in a call, by its code."""


def call_under_way(thread: int) -> FrameType | None:
    """Return the frame of a simulator's call that a thread is in, None outside of any.

    It is the same object for as long as the call is: who keeps it sees whether it is another one,
    and nothing has to be noted at each step.

    Args:
        thread: its identifier.
    """
    return next((frame for frame in _frames(thread) if frame.f_code in _CALLS), None)


def timeout_of(call: FrameType) -> float:
    """Return how many seconds a call may last (``env.timeout``)."""
    return _owner(call).timeout


def waits_for(call: FrameType, thread: int) -> str:
    """Return which environment a call waits for, and where: ``"environment 3 of 'X' in a step"``.

    EnvPool does not tell which one.
    """
    owner, which = _owner(call), "an environment"
    index = index_of(list(_frames(thread))[::-1])
    if call.f_code in _STEPPING and index is not None:
        first = owner.pools[call.f_locals.get("pool", 0)].start  # a reset counts them up
        which = f"environment {first + index}"
    return f"{which} of {owner.id!r} in {_CALLS[call.f_code]}"


def _owner(call: FrameType) -> Any:
    """Return the simulator, or the specification that one is made of."""
    return call.f_locals.get("spec") or call.f_locals["self"]


def _frames(thread: int) -> Iterator[FrameType]:
    """Yield what a thread is in, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
