"""Steps that do not return: which call of a simulator a thread is in, seen from another thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from ppo1_lightning.simulators.failures import index_of
from ppo1_lightning.simulators.vector import VectorSimulator

_CALLS = {
    VectorSimulator.reset.__code__: "the first reset",
    VectorSimulator.receive.__code__: "a step",
}
"""What an environment does in a call, by its code."""


def call_under_way(thread: int) -> FrameType | None:
    """Return the frame of a simulator's step or reset that a thread is in, None outside of any.

    It is the same object for as long as the call is: who keeps it sees whether it is another one,
    and nothing has to be noted at each step.

    Args:
        thread: its identifier.
    """
    return next((frame for frame in _frames(thread) if frame.f_code in _CALLS), None)


def timeout_of(call: FrameType) -> float:
    """Return how many seconds a call may last (``env.timeout``)."""
    return call.f_locals["self"].timeout


def waits_for(call: FrameType, thread: int) -> str:
    """Return which environment a call waits for, and where: ``"environment 3 of 'X' in a step"``.

    EnvPool does not tell which one.
    """
    simulator, pool = call.f_locals["self"], call.f_locals.get("pool", 0)  # a reset counts them up
    index = index_of(list(_frames(thread))[::-1])
    first = simulator.pools[pool].start
    which = "an environment" if index is None else f"environment {first + index}"
    return f"{which} of {simulator.id!r} in {_CALLS[call.f_code]}"


def _frames(thread: int) -> Iterator[FrameType]:
    """Yield what a thread is in, the innermost first."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
