"""Environments that end, or raise what is no `Exception`: they have failed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.runs.signals import StopSignals
from ppo1_lightning.simulators import EnvironmentSpec, Simulator, make_simulator, spaces


class Odd(gymnasium.Env[Any, Any]):
    """Does something odd where it is told to."""

    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Discrete(2)
    does: dict[str, Callable[[], Any]]

    def __init__(self) -> None:
        self._do("make")

    def _do(self, where: str) -> None:
        self.does.get(where, lambda: None)()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._do("reset")
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self._do("step")
        return np.zeros(3, np.float32), 1.0, False, False, {}

    def close(self) -> None:
        self._do("close")


class Silent(Exception):  # noqa: N818
    """Does not say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


def raises(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


def first_step(simulator: Simulator) -> None:
    simulator.reset()
    simulator.step(np.zeros(2, np.int64))


@pytest.fixture
def odd() -> Iterator[EnvironmentSpec]:
    gymnasium.register("Odd-v0", cast(Any, Odd))
    Odd.does = {}
    yield EnvironmentSpec("Odd-v0")
    del gymnasium.registry["Odd-v0"]


ENDS = {
    "exit": (lambda: sys.exit(0), "SystemExit"),
    "exit with a word": (lambda: sys.exit("bye"), "SystemExit"),
    "quit": (raises(SystemExit()), "SystemExit"),
    "generator": (raises(GeneratorExit()), "GeneratorExit"),
    "base": (raises(BaseException("x")), "BaseException"),
    "silent": (raises(Silent()), "Silent"),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_ends_has_failed(name: str, where: str, odd: EnvironmentSpec) -> None:
    does, said = ENDS[name]
    simulator = make_simulator(odd, [1, 2])
    Odd.does = {where: does}
    with pytest.raises(SimulationError, match=rf"environment 0 of 'Odd-v0' raised {said}"):
        first_step(simulator)


@pytest.mark.parametrize("name", list(ENDS)[:-1])
def test_one_that_ends_when_it_is_made_is_refused(name: str, odd: EnvironmentSpec) -> None:
    does, said = ENDS[name]
    Odd.does = {"make": does}
    with pytest.raises(ConfigurationError, match=rf"cannot make 'Odd-v0': it raised {said}"):
        spaces(odd)


@pytest.mark.parametrize("name", ENDS)
def test_what_it_raises_when_it_is_closed_is_told(
    name: str, odd: EnvironmentSpec, caplog: pytest.LogCaptureFixture
) -> None:
    does, said = ENDS[name]
    Odd.does = {"close": does}
    assert spaces(odd)[1] == Discrete(2)
    simulator = make_simulator(odd, [1, 2, 3])
    simulator.reset()
    caplog.clear()
    simulator.close()
    assert len(caplog.messages) == 3  # one is closed although another failed
    assert all(f"'Odd-v0' raised {said}" in message for message in caplog.messages)


def test_a_signal_in_a_step_ends_the_run(odd: EnvironmentSpec) -> None:
    """Its handler raises wherever the process is: that is no failure of the environment."""
    simulator = make_simulator(odd, [1])
    simulator.reset()
    Odd.does = {"step": lambda: signal.raise_signal(signal.SIGTERM)}
    signals = StopSignals()
    signals.catch(at_once=lambda: True)
    try:
        with pytest.raises(SystemExit):
            simulator.step(np.zeros(1, np.int64))
    finally:
        signals.release()


class TimesUp(BaseException):
    """Of a handler of one's own."""


class Handler:
    def __call__(self, *_: Any) -> None:
        raise TimesUp


HANDLERS: dict[str, tuple[Any, type[BaseException]]] = {
    "function": (lambda *_: sys.exit(7), SystemExit),
    "partial": (partial(lambda status, *_: sys.exit(status), 7), SystemExit),
    "object": (Handler(), TimesUp),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_of_ones_own_ends_the_run(name: str, odd: EnvironmentSpec) -> None:
    handler, end = HANDLERS[name]
    simulator = make_simulator(odd, [1])
    simulator.reset()
    Odd.does = {"step": lambda: signal.raise_signal(signal.SIGTERM)}
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(end):
            simulator.step(np.zeros(1, np.int64))
    finally:
        signal.signal(signal.SIGTERM, before)
