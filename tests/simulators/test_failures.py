"""Environments that fail in their own ways end in one line, in this process and in others."""

from __future__ import annotations

import collections
import math
import os
import signal
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator

ZEROS = np.zeros(2, np.float32)


class UnsendableError(ValueError):
    """One that no pipe takes, with a word of Gymnasium's own errors."""

    def __init__(self) -> None:
        super().__init__("expected a sequence of float", lambda: None)


class Failing(gymnasium.Env[Any, Any]):
    """Does in its second step what it is told."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def __init__(self, how: str) -> None:
        self._how = how

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return ZEROS, {}

    def step(self, action: Any) -> Any:
        self.t += 1
        returned: dict[str, Any] = {
            "old step": (ZEROS, 1.0, False, {}),
            "nothing": None,
            "several rewards": (ZEROS, np.array([1.0, 2.0]), False, False, {}),
            "an array": (ZEROS, np.array([1.0]), False, False, {}),
            "a word": (ZEROS, "one", False, False, {}),
            "another shape": (np.zeros(3, np.float32), 1.0, False, False, {}),
        }
        if self.t == 2 and self._how == "raise":
            raise RuntimeError("the motor\nis 100 %d hot")
        if self.t == 2 and self._how == "raise of floats":
            raise UnsendableError
        if self.t == 2 and self._how == "stop":
            raise StopIteration("all is said")
        if self.t == 2 and self._how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return returned.get(self._how if self.t == 2 else "", (ZEROS, 1.0, False, False, {}))


class Late(Failing):
    """Raises where its seed is 1."""

    def __init__(self) -> None:
        super().__init__("raise")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 1 if seed == 1 else -9
        return ZEROS, {}


class Flags(Failing):
    """Ends each step with these flags."""

    def __init__(self, terminated: Any, truncated: Any) -> None:
        super().__init__("")
        self._flags = terminated, truncated

    def step(self, action: Any) -> Any:
        return (ZEROS, 1.0, *self._flags, {})


gymnasium.register("Flags-v0", Flags)  # type: ignore[arg-type]
gymnasium.register("Late-v0", Late)  # type: ignore[arg-type]
gymnasium.register("Failing-v0", Failing)  # type: ignore[arg-type]

FAILURES: dict[str, tuple[type[Exception], str]] = {
    "raise": (SimulationError, "raised RuntimeError: the motor is 100 %d hot (test_failures.py:"),
    "raise of floats": (SimulationError, "raised UnsendableError: ('expected a sequence of float"),
    "stop": (SimulationError, "raised StopIteration: all is said"),  # not the end of the data
    "old step": (ConfigurationError, "expected step to return (observation, reward, terminated,"),
    "nothing": (ConfigurationError, "expected step to return (observation, reward, terminated,"),
    "several rewards": (ConfigurationError, "expected a number as the reward"),
    "an array": (ConfigurationError, "expected a number as the reward"),
    "a word": (ConfigurationError, "expected a number as the reward"),
    "another shape": (ConfigurationError, "not in its space Box"),
    "killed": (SimulationError, "has lost its process"),
}
"""In this process, and in one of its own."""


def step_with_flags(mode: str, terminated: Any, truncated: Any) -> None:
    options = {"terminated": terminated, "truncated": truncated, "vectorization_mode": mode}
    simulator = make_simulator(EnvironmentSpec("Flags-v0", options=options), [0, 1])
    try:
        simulator.reset()
        simulator.step(np.array([0, 0]))
        simulator.step(np.array([0, 0]))
    finally:
        simulator.close()


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, False), "terminated is None), expected a number as the reward and a bool as each"),
        ((False, "no"), "truncated is 'no'), expected a number as the reward and a bool as each"),
        ((False, []), "truncated is []), expected a number as the reward and a bool as each"),
        ((False, [True]), "truncated is [True]), expected a number as the reward and a bool"),
        (({"a": True}, False), "terminated is {'a': True}), expected a number as the reward"),
        ((math.nan, False), "terminated is nan), expected a number as the reward and a bool as"),
    ],
)
def test_a_flag_that_is_none_is_refused(flags: Any, message: str, mode: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        step_with_flags(mode, *flags)
    assert message in str(caught.value)


class Returning(Failing):
    """Resets or steps to something else, or has the interface of old."""

    def __init__(self, observation: Any = ZEROS, info: Any = None, at: str = "reset") -> None:
        super().__init__("")
        self._returned = {at: (observation, {} if info is None else info)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._returned.get("reset", (ZEROS, {}))

    def step(self, action: Any) -> Any:
        observation, info = self._returned.get("step", (ZEROS, {}))
        return observation, 1.0, False, False, info


class Old(gymnasium.Env[Any, Any]):
    """As environments of Gym before 0.26 are."""

    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)

    def reset(self) -> Any:  # type: ignore[override]
        return ZEROS

    def step(self, action: Any) -> Any:
        return ZEROS, 1.0, False, {}


gymnasium.register("Returning-v0", Returning)  # type: ignore[arg-type]
gymnasium.register("Old-v0", Old)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("at", ["reset", "step"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"observation": np.zeros(3)}, "returns an observation that is not in its space Box"),
        ({"observation": "words"}, "returns an observation that is not in its space Box"),
        ({"info": "words"}, "info is 'words'), expected a dict as info"),
        ({"info": [1]}, "info is [1]), expected a dict as info"),
    ],
    ids=["shape", "words", "info of words", "info of a list"],
)
def test_what_is_returned_first_is_looked_at(what: Any, message: str, at: str, mode: str) -> None:
    options = {**what, "at": at, "vectorization_mode": mode}
    simulator = make_simulator(EnvironmentSpec("Returning-v0", options=options), [0, 1])
    with pytest.raises(ConfigurationError) as caught:  # noqa: PT012
        simulator.reset()
        simulator.step(np.array([0, 0]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Moved(Failing):
    """Has its step on itself, as what is made on the fly may; or calls it where it is reset."""

    def __init__(self) -> None:
        super().__init__("")
        self.step = self._own_step  # type: ignore[method-assign]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._own_step(None, first=True)
        return ZEROS, collections.UserDict(a=1)

    def _own_step(self, action: Any, first: bool = False) -> Any:
        return None if first else (ZEROS, 7.0, False, False, {})


gymnasium.register("Moved-v0", Moved, order_enforce=False)  # type: ignore[arg-type]


def test_an_environment_is_left_as_it_is() -> None:
    simulator = make_simulator(EnvironmentSpec("Moved-v0"), [0, 1])
    simulator.reset()
    rewards = [simulator.step(np.array([0, 0])).reward.tolist() for _ in range(3)]
    assert rewards == [[7.0, 7.0]] * 3


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
def test_the_old_interface_is_known(mode: str) -> None:
    simulator = make_simulator(
        EnvironmentSpec("Old-v0", options={"vectorization_mode": mode}), [0, 1]
    )
    with pytest.raises(ConfigurationError, match="shimmy"):
        simulator.reset()


@pytest.mark.parametrize(
    "flag",
    [0, 0.0, np.bool_(False), np.array(False), np.array([False]), torch.tensor(False)],
)
def test_flags_of_other_kinds_are_taken(flag: Any) -> None:
    step_with_flags("sync", flag, flag)


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("how", FAILURES)
def test_a_failure_is_one_line(how: str, mode: str) -> None:
    if how == "killed" and mode == "sync":
        pytest.skip("this process would be killed")
    options = {"how": how, "vectorization_mode": mode}
    simulator: Any = make_simulator(EnvironmentSpec("Failing-v0", options=options), [0, 1])
    kind, message = FAILURES[how]
    simulator.reset()
    simulator.step(np.array([0, 0]))
    with pytest.raises(kind) as caught:
        simulator.step(np.array([0, 0]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    processes: Any = getattr(simulator._pools[0], "processes", ())
    for process in processes:
        process.join(5)
        assert not process.is_alive()
    simulator.close()


@pytest.mark.heavy
@pytest.mark.parametrize("options", [{}, {"vectorization_mode": "async"}])
def test_the_environment_that_failed_is_named(options: dict[str, Any]) -> None:
    spec = EnvironmentSpec("Late-v0", options=options, num_pools=2)
    simulator = make_simulator(spec, [0, 0, 0, 1])
    simulator.reset()
    with pytest.raises(SimulationError, match=r"^environment 3 of 'Late-v0' raised RuntimeError"):
        simulator.step(np.zeros(4, np.int64))


class Saying(Failing):
    """Tells what no array can hold and no process can send, or returns something from the start."""

    def __init__(self, returned: Any = None) -> None:
        super().__init__("")
        self._returned = returned or (ZEROS, 1.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        mask = np.ones(seed or 1)  # of another length in each, which nobody has asked for
        return ZEROS, {"n": 1, "lock": lambda: None, "action_mask": mask}

    def step(self, action: Any) -> Any:
        self.t += 1
        return (*self._returned, False, False, {"n": 10 ** (30 * self.t), "lock": lambda: None})


gymnasium.register("Saying-v0", Saying)  # type: ignore[arg-type]


def saying(mode: str, **options: Any) -> Any:
    options["vectorization_mode"] = mode
    simulator = make_simulator(EnvironmentSpec("Saying-v0", options=options), [0, 1])
    try:
        simulator.reset()
        simulator.step(np.array([0, 0]))
        return simulator.step(np.array([0, 0]))
    finally:
        simulator.close()


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
def test_infos_that_nobody_reads_may_hold_anything(mode: str) -> None:
    assert saying(mode).reward.tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((ZEROS, None), "environment . of 'Saying-v0' does not reset or step.*reward is None"),
        ((np.zeros((1, 2)), 1.0), r"environment . of 'Saying-v0' returns .*shape is \(1, 2\)"),
        (([[0.0], [1.0, 2.0]], 1.0), "environment . of 'Saying-v0' returns an observation"),
        ((0.0, 1.0), r"environment . of 'Saying-v0' returns an observation.*its shape is \(\)"),
    ],
)
def test_what_is_returned_from_the_start_is_told(returned: Any, message: str, mode: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        saying(mode, returned=returned)


def test_an_id_s_module_is_a_module_s_name() -> None:
    with pytest.raises(ConfigurationError, match="has no module's name before the colon"):
        make_simulator(EnvironmentSpec("json:x:Foo-v0"), [0])
