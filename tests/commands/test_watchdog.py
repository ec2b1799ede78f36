"""An environment that hangs ends its process, by a timeout or after a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from ppo1_lightning.commands import watchdog
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator


class Hangs(gymnasium.Env[Any, Any]):
    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)
    entered, ended = threading.Event(), threading.Event()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.entered.set()
        assert self.ended.wait(20)
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Hangs-v0", entry_point=Hangs)  # type: ignore[arg-type]


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit status that the process would have had."""
    found: list[int] = []

    def end(status: int) -> None:
        found.append(status)
        Hangs.ended.set()

    monkeypatch.setattr(watchdog, "_end_now", end)
    monkeypatch.setattr(watchdog, "PERIOD", 0.02)
    monkeypatch.setattr(watchdog, "GRACE", 0.1)
    monkeypatch.setattr(watchdog, "REPEAT_SECONDS", 0.05)
    Hangs.ended.clear()
    Hangs.entered.clear()
    return found


def step(timeout: float) -> None:
    spec = EnvironmentSpec("Hangs-v0", backend="gymnasium", timeout=timeout)
    simulator = make_simulator(spec, [0, 1])
    simulator.reset()
    simulator.step(np.zeros(2, np.int64))
    simulator.close()


def test_a_step_beyond_its_timeout_is_told(status: list[int]) -> None:
    told: list[str] = []
    with watchdog.watching(told.append):
        step(timeout=0.2)
    assert status[0] == 2
    message = "environment 0 of 'Hangs-v0' in a step has not returned for 0.2 s (env.timeout)"
    assert told[0] == message


def test_a_signal_is_repeated_then_ends_the_process(
    status: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda who, number: (sent.append(number), kill(who, number)))
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    def tell() -> None:
        assert Hangs.entered.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with watchdog.watching(pytest.fail):
            threading.Thread(target=tell).start()
            step(timeout=100)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status[0] == 143
    assert sent == [signal.SIGTERM] * 2


def test_time_in_which_the_process_was_stopped_does_not_count(
    status: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + stopped[0])
    monkeypatch.setattr(watchdog, "time", clock)

    def stop_and_continue() -> None:
        assert Hangs.entered.wait(20)
        time.sleep(0.1)
        stopped[0] = 1000.0
        time.sleep(0.2)
        Hangs.ended.set()

    told: list[str] = []
    with watchdog.watching(told.append):
        threading.Thread(target=stop_and_continue).start()
        step(timeout=100)
    assert not told
    assert not status


def test_steps_that_return_are_left_alone(status: list[int]) -> None:
    with watchdog.watching(pytest.fail):
        Hangs.ended.set()
        for _ in range(3):
            step(timeout=5)
    assert not status
    assert signal.set_wakeup_fd(-1) == -1
