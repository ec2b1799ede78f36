"""The Gymnasium simulator: spaces of every kind, options, and what it refuses."""

from typing import cast

import gymnasium
import numpy as np
import pytest
from gymnasium.envs import registration
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator, spaces

UNIT = Box(-1, 1, (2,), np.float64)


class Echo(gymnasium.Env):
    """Has the spaces it is told, remembers its last action, and returns the reward it is told."""

    def __init__(self, action=None, observation=None, rewards=(1.0,), breaks=False):
        if breaks:
            raise ValueError("this environment\nnever starts")
        self.action_space = action or Discrete(2)
        self.observation_space = observation or UNIT
        self._rewards = rewards
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.t = 0
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.last_action = np.array(action)
        if isinstance(self.action_space, Box):
            action[...] = 0  # an environment may do what it likes with its argument
        reward = self._rewards[min(self.t, len(self._rewards) - 1)]
        self.t += 1
        return self.observation_space.sample(), reward, False, False, {}


@pytest.fixture(autouse=True)
def _echo(monkeypatch):
    make = cast(registration.EnvCreator, Echo)
    registry = {"Echo-v0": registration.EnvSpec("Echo-v0", entry_point=make)}
    monkeypatch.setattr(registration, "registry", gymnasium.registry | registry)
    monkeypatch.setattr(gymnasium, "registry", gymnasium.registry | registry)


def echo(num_envs=2, clip_actions=False, observation_keys=None, **options):
    spec = EnvironmentSpec(
        "Echo-v0", options=options, clip_actions=clip_actions, observation_keys=observation_keys
    )
    return make_simulator(spec, list(range(num_envs)))


def unwrapped(simulator):
    """Return the Echo environments inside."""
    return [env.unwrapped for env in simulator._envs.envs]


ACTION_SPACES = [
    # the environment's space, the policy's, a policy's actions, what the environments receive
    (Discrete(3, start=5), Discrete(3), [0, 2], [5, 7]),
    (MultiDiscrete([2, 3]), MultiDiscrete([2, 3]), [[1, 2], [0, 0]], [[1, 2], [0, 0]]),
    (
        MultiDiscrete([2, 3], start=[4, -1]),
        MultiDiscrete([2, 3]),
        [[1, 2], [0, 0]],
        [[5, 1], [4, -1]],
    ),
    (
        MultiDiscrete(np.array([[2, 3], [4, 5]])),
        MultiDiscrete([2, 3, 4, 5]),
        [[1, 2, 3, 4], [0, 1, 2, 3]],
        [[[1, 2], [3, 4]], [[0, 1], [2, 3]]],
    ),
    (MultiBinary(3), MultiBinary(3), [[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]]),
    (MultiBinary((1, 2)), MultiBinary(2), [[0, 1], [1, 1]], [[[0, 1]], [[1, 1]]]),
    (Box(-1, 1, (2,), np.float64), Box(-1, 1, (2,)), [[0.5, -3.0], [1, 0]], [[0.5, -3], [1, 0]]),
    (Box(-1, 1, (2, 1)), Box(-1, 1, (2,)), [[0.5, 1.0], [1, 0]], [[[0.5], [1]], [[1], [0]]]),
    (Box(2, 4, (2,), np.int32), MultiDiscrete([3, 3]), [[0, 2], [1, 1]], [[2, 4], [3, 3]]),
]


@pytest.mark.parametrize(("native", "ours", "action", "received"), ACTION_SPACES)
def test_actions_reach_the_environment_in_its_own_space(native, ours, action, received):
    simulator = echo(action=native)
    assert simulator.action_space == ours
    simulator.reset()
    action = np.array(action)
    before = action.copy()
    simulator.step(action)
    np.testing.assert_array_equal(action, before)
    got = [env.last_action for env in unwrapped(simulator)]
    np.testing.assert_array_equal(got, received)
    assert got[0].dtype == native.dtype


def test_clipping_is_to_the_bounds_of_the_box():
    native = Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32))
    simulator = echo(action=native, clip_actions=True, num_envs=1)
    simulator.reset()
    action = np.array([[-4, -4]], np.float32)
    simulator.step(action)
    np.testing.assert_array_equal(action, -4)
    np.testing.assert_array_equal(unwrapped(simulator)[0].last_action, [-1, 0])


BAD_ACTIONS = [
    (MultiDiscrete([2, 3]), [[0, 3], [0, 0]], "expected 0 to [1, 2]"),
    (MultiDiscrete([2, 3]), [[0, 0], [-1, 0]], "action [-1, 0] of environment 1"),
    (MultiBinary(2), [[0, 1], [2, 0]], "action [2, 0] of environment 1"),
    (MultiBinary(2), [[0.0, 1.0], [0.0, 0.0]], "dtype float64, expected integers"),
    (Discrete(3, start=5), [5, 6], "action 5 of environment 0 is out of range, expected 0 to 2"),
    (Discrete(3), ["a", "b"], "expected integers"),
    (Box(-1, 1, (2, 1)), [[[0.0], [0.0]]] * 2, "shape (2, 2, 1), expected (2, 2)"),
    (Box(-1, 1, (2,)), [[0.0, np.nan], [0, 0]], "[0.0, nan] of environment 0"),
]


@pytest.mark.parametrize(("native", "action", "message"), BAD_ACTIONS)
def test_bad_actions_are_refused(native, action, message):
    simulator = echo(action=native)
    simulator.reset()
    with pytest.raises(ConfigurationError) as caught:
        simulator.step(np.array(action))
    assert message in str(caught.value)


OBSERVATION_SPACES = [
    (UNIT, None, Box(-1, 1, (2,), np.float32)),
    (Box(-1, 1, (), np.float32), None, Box(-1, 1, (1,), np.float32)),
    (Box(-1, 1, (2, 3), np.float32), None, Box(-1, 1, (2, 3), np.float32)),
    (Box(0, 9, (2,), np.int64), None, Box(0, 9, (2,), np.float32)),
    (Box(0, 255, (4,), np.uint8), None, Box(0, 255, (4,), np.float32)),
    (Box(0, 255, (8, 8, 3), np.uint8), None, Box(0, 255, (8, 8, 3), np.uint8)),
    (
        Dict(b=UNIT, a=Box(0, 1, ())),
        None,
        Box(np.array([-1, -1, 0], np.float32), np.ones(3, np.float32)),
    ),
    (Dict(b=UNIT, a=Box(0, 1, ())), ["b"], Box(-1, 1, (2,), np.float32)),
    (Dict(b=UNIT, text=Text(4)), ["b"], Box(-1, 1, (2,), np.float32)),
    (Dict(image=Box(0, 255, (2, 2), np.uint8)), None, Box(0, 255, (2, 2), np.uint8)),
]


@pytest.mark.parametrize(("native", "keys", "ours"), OBSERVATION_SPACES)
def test_observations_become_one_array(native, keys, ours):
    if isinstance(native, Dict) and keys is None and "b" in native.spaces:
        keys = ["b", "a"]
    simulator = echo(observation=native, observation_keys=keys)
    assert simulator.observation_space == ours
    for observation in (simulator.reset(), simulator.step(np.array([0, 1])).observation):
        assert observation.dtype == ours.dtype
        assert observation.shape == (2, *ours.shape)
        assert all(ours.contains(row) for row in observation)


UNSUPPORTED = [
    ({"observation": Discrete(4)}, "observes Discrete(4), expected a Box"),
    ({"observation": MultiBinary(4)}, "observes MultiBinary(4), expected a Box"),
    ({"observation": Tuple((UNIT, UNIT))}, "observes Tuple("),
    ({"observation": Text(5)}, "observes Text("),
    ({"observation": Dict(a=UNIT, n=Discrete(3))}, "observes Discrete(3) as 'n', expected"),
    ({"observation": Dict(a=UNIT, n=Box(0, 1, (2, 2)))}, "expected vectors only"),
    ({"observation": Dict(a=Dict(b=UNIT))}, "observes Dict("),
    ({"action": Text(5)}, "action space Text("),
    ({"action": Tuple((Discrete(2), Discrete(2)))}, "expected a Box, Discrete, MultiDiscrete or"),
    ({"action": Dict(a=Discrete(2))}, "action space Dict("),
]


@pytest.mark.parametrize(("options", "message"), UNSUPPORTED)
def test_unsupported_spaces_are_named(options, message):
    with pytest.raises(ConfigurationError) as caught:
        spaces(EnvironmentSpec("Echo-v0", options=options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_SPECS = [
    ("Echo-v0", {"reward": 1}, "option 'reward' is unknown to 'Echo-v0' on Gymnasium"),
    ("Echo-v0", {"reward": 1}, "did you mean 'rewards'"),
    ("Echo-v0", {"breaks": True}, "Gymnasium cannot make 'Echo-v0' with {'breaks': True}: this"),
    ("Echo-v0", {"seed": 1}, "set the seed of the run"),
    ("Echo-v0", {"num_envs": 1}, "set num_envs of the run"),
    ("Echo-v0", {"vectorization_mode": "asink"}, "did you mean 'async'"),
    ("CartPole-v1", {"sutton_reward": True}, "did you mean 'sutton_barto_reward'"),
    ("no_such_module:Env-v0", {}, "module 'no_such_module' of the environment id"),
    ("scripted_env:Scriptd-v0", {}, "did you mean 'Scripted-v0'"),
]


@pytest.mark.parametrize(("env_id", "options", "message"), BAD_SPECS)
def test_bad_ids_and_options_are_refused_in_one_line(env_id, options, message):
    spec = EnvironmentSpec(env_id, "gymnasium", options=options)
    for make in (lambda: spaces(spec), lambda: make_simulator(spec, [0])):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_rewards_that_are_not_finite_stop_the_run(value):
    simulator = echo(rewards=(1.0, value), num_envs=3)
    simulator.reset()
    simulator.step(np.zeros(3, np.int64))
    with np.errstate(over="ignore"):
        shown = np.float32(value)
        with pytest.raises(SimulationError) as caught:
            simulator.step(np.zeros(3, np.int64))
    assert f"environment 0 of 'Echo-v0' returned the reward {shown}" in str(caught.value)


def test_observations_that_are_not_finite_stop_the_run(monkeypatch):
    simulator = echo()
    simulator.reset()
    monkeypatch.setattr(Box, "sample", lambda self: np.array([0.0, np.nan]))
    with pytest.raises(
        SimulationError, match="environment 0 of 'Echo-v0' returned the observation"
    ):
        simulator.step(np.zeros(2, np.int64))


def test_each_environment_gets_its_own_seed_once():
    simulator = make_simulator(EnvironmentSpec("Echo-v0"), [3, 17])
    first, second = simulator.reset(), simulator.reset()
    seeds = [env.seeds for env in unwrapped(simulator)]
    assert seeds == [[3, None], [17, None]]
    assert not np.isin(first, second).any()
    np.testing.assert_array_equal(
        make_simulator(EnvironmentSpec("Echo-v0"), [17]).reset()[0], first[1]
    )


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_closed_simulator_says_so(mode):
    spec = EnvironmentSpec("CartPole-v1", "gymnasium", options={"vectorization_mode": mode})
    simulator = make_simulator(spec, [0])
    simulator.reset()
    simulator.close()
    simulator.close()
    with pytest.raises(RuntimeError, match="closed"):
        simulator.step(np.zeros(1, np.int64))


def test_a_later_step_changes_no_earlier_array():
    simulator = echo(observation=Box(-1, 1, (2,), np.float32))  # float32: no copy on conversion
    arrays = [simulator.reset(), *simulator.step(np.array([0, 1]))]
    before = [array.copy() for array in arrays]
    for _ in range(3):
        simulator.step(np.array([1, 0]))
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
