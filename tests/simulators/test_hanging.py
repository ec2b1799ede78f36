"""A step that does not return, as another thread sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from ppo1_lightning.simulators import EnvironmentSpec, hanging, make_simulator
from ppo1_lightning.simulators.vector import VectorSimulator


class Gate(gymnasium.Env[Any, Any]):
    """Its steps wait until the gate is open."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)
    entered, opened = threading.Semaphore(0), threading.Semaphore(0)

    def __init__(self, waits: bool = True) -> None:
        self.waits = waits

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        if action == 1:
            self.entered.release()
            assert self.opened.acquire(timeout=20)
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Gate-v0", entry_point=Gate)  # type: ignore[arg-type]


@pytest.fixture
def stepping() -> Iterator[threading.Thread]:
    """A thread that makes two steps, in which the third of four environments waits."""
    spec = EnvironmentSpec("Gate-v0", backend="gymnasium", num_pools=2, timeout=7)
    simulator = make_simulator(spec, [0, 1, 2, 3])
    simulator.reset()

    def step() -> None:
        for _ in range(2):
            simulator.step(np.array([0, 0, 1, 0]))

    thread = threading.Thread(target=step)
    thread.start()
    yield thread
    thread.join()
    assert hanging.call_under_way(thread.ident or 0) is None
    simulator.close()


def test_the_call_is_the_same_object_until_it_returns(stepping: threading.Thread) -> None:
    thread = stepping.ident or 0
    assert Gate.entered.acquire(timeout=20)
    call = hanging.call_under_way(thread)
    assert call is not None
    assert hanging.call_under_way(thread) is call
    assert hanging.waits_for(call, thread) == "environment 2 of 'Gate-v0' in a step"
    assert hanging.timeout_of(call) == 7
    Gate.opened.release()
    assert Gate.entered.acquire(timeout=20)
    assert hanging.call_under_way(thread) not in (call, None)
    Gate.opened.release()


def test_this_thread_is_in_no_call() -> None:
    assert hanging.call_under_way(threading.get_ident()) is None


def test_a_reset_that_has_come_to_no_pool_yet() -> None:
    simulator = SimpleNamespace(id="Gate-v0", pools=[slice(0, 2)])
    call: Any = SimpleNamespace(f_code=VectorSimulator.reset.__code__, f_locals={"self": simulator})
    told = hanging.waits_for(call, threading.get_ident())
    assert told == "an environment of 'Gate-v0' in the first reset"


class Sleeper(Gate):
    """Waits while it is made, or closed, the second time: the first is asked for its spaces."""

    made: ClassVar[int] = 0

    def __init__(self, waits_in: str) -> None:
        super().__init__()
        self.waits_in = waits_in
        Sleeper.made += 1
        self._wait("making")

    def _wait(self, where: str) -> None:
        if where == self.waits_in and Sleeper.made == 2:
            self.entered.release()
            assert self.opened.acquire(timeout=20)

    def close(self) -> None:
        self._wait("closing")


gymnasium.register("Sleeper-v0", entry_point=Sleeper)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["making", "closing"])
def test_an_environment_that_waits_while_it_is_made_or_closed(where: str) -> None:
    Sleeper.made = 0
    spec = EnvironmentSpec("Sleeper-v0", "gymnasium", {"waits_in": where}, timeout=7)
    thread = threading.Thread(target=lambda: make_simulator(spec, [0]).close())
    thread.start()
    assert Gate.entered.acquire(timeout=20)
    ident = thread.ident or 0
    call = hanging.call_under_way(ident)
    assert call is not None
    assert hanging.waits_for(call, ident) == f"an environment of 'Sleeper-v0' in the {where}"
    assert hanging.timeout_of(call) == 7
    Gate.opened.release()
    thread.join()
    assert hanging.call_under_way(ident) is None
