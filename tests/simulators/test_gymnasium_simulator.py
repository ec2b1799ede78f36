"""The Gymnasium simulator: spaces of every kind, options, and what it refuses."""

import os
import random
import signal
from copy import deepcopy
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs import registration
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Text,
    Tuple,
    flatten,
    flatten_space,
    unflatten,
)
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, TimeLimit

from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.policies.spaces import RescaledBox
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator, spaces

UNIT = Box(-1, 1, (2,), np.float64)


class Echo(gymnasium.Env):
    """Has the spaces it is told, remembers its last action, and returns the reward it is told."""

    def __init__(self, action=None, observation=None, rewards=(1.0,), breaks=False):
        if breaks:
            raise ValueError("this environment\nnever starts")
        self.action_space = action or Discrete(2)
        self.observation_space = deepcopy(
            UNIT if observation is None else observation
        )  # it has a state: its seed
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
    registry = dict(gymnasium.registry)
    for environment in (Echo, Global, Colours, Liar):
        name, make = f"{environment.__name__}-v0", cast(registration.EnvCreator, environment)
        registry[name] = registration.EnvSpec(name, entry_point=make)
    monkeypatch.setattr(registration, "registry", registry)
    monkeypatch.setattr(gymnasium, "registry", registry)


def echo(num_envs=2, clip_actions=False, observation_keys=None, **options):
    spec = EnvironmentSpec(
        "Echo-v0", options=options, clip_actions=clip_actions, observation_keys=observation_keys
    )
    return make_simulator(spec, list(range(num_envs)))


def unwrapped(simulator):
    """Return the Echo environments inside."""
    return [env.unwrapped for env in simulator._pools[0].envs]


BOOLS = Box(0, 1, (1, 2), np.bool_)  # type: ignore[call-overload]
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
    (BOOLS, MultiBinary(2), [[0, 1], [1, 1]], [[[0, 1]], [[1, 1]]]),
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


def test_clipped_actions_lie_within_bounds_that_float32_has_not():
    native = Box(-0.1, 0.1, (2,), np.float64)
    simulator = echo(action=native, clip_actions=True, num_envs=1)
    simulator.reset()
    simulator.step(np.array([[-5, 5]], np.float32))
    (env,) = unwrapped(simulator)
    assert native.contains(env.last_action)
    np.testing.assert_allclose(env.last_action, [-0.1, 0.1], rtol=1e-7)


class Liar(gymnasium.Env):
    """Observes what is not in its space from its second step on."""

    action_space = Discrete(2)

    def __init__(self, space=UNIT, lie=None):
        self.observation_space, self._lie = deepcopy(space), lie

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        told = self.observation_space.sample() if self.t < 2 else self._lie
        return told() if callable(told) else told, 1.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "lie", "message"),
    [
        (Discrete(3), 7, "the observation 7, expected one of Discrete(3)"),
        (Discrete(3, start=-1), 2, "the observation 2, expected one of Discrete(3, start=-1)"),
        (MultiDiscrete([2, 3]), [0, 3], "the observation [0 3], expected one of MultiDiscrete"),
        (MultiBinary(2), [0, 5], "the observation [0 5], expected one of MultiBinary(2)"),
        (Dict(n=Discrete(3)), {"n": 4}, "the observation 4 as 'n', expected one of Discrete(3)"),
        (UNIT, np.zeros(4), "not in its space Box(-1.0, 1.0, (2,), float64) (ValueError"),
        (Box(0, 9, (2, 2), np.uint8), np.full((2, 2), 0.5), "not in its space Box(0, 9, (2, 2)"),
        (Dict(a=UNIT, b=UNIT), {"a": np.zeros(2)}, "not in its space Dict("),
    ],
)
def test_observations_outside_of_their_space_are_told_in_one_line(space, lie, message):
    simulator = make_simulator(
        EnvironmentSpec("Liar-v0", options={"space": space, "lie": lie}), [0]
    )
    simulator.reset()
    simulator.step(np.array([0]))
    with pytest.raises((SimulationError, ConfigurationError)) as caught:
        simulator.step(np.array([0]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_environment_s_own_errors_are_told_in_one_line_and_kept():
    def fail():
        raise ValueError("mine\nand more")

    simulator = make_simulator(EnvironmentSpec("Liar-v0", options={"lie": fail}), [0])
    simulator.reset()
    simulator.step(np.array([0]))
    message = (
        r"environment 0 of 'Liar-v0' raised ValueError: mine and more \(test_gym\S*:\d+; HYDRA"
    )
    with pytest.raises(SimulationError, match=message) as caught:
        simulator.step(np.array([0]))
    assert isinstance(caught.value.__cause__, ValueError)


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
    (Box(-1, 1, (2, 3), np.float32), None, Box(-1, 1, (6,), np.float32)),
    (Box(0, 99, (2,), np.int64), None, Box(0, 99, (2,), np.float32)),
    (Box(-1, 3, (2, 2), np.int64), None, Box(0, 1, (20,), np.float32)),
    (Box(0, 1, (2, 2), np.int64), None, Box(0, 1, (4,), np.float32)),
    (Box(0, 255, (24, 30), np.uint8), None, Box(0, 255, (1, 24, 30), np.uint8)),
    (Box(0, 255, (9, 9), np.uint8), None, Box(0, 255, (81,), np.float32)),
    (Box(0, 1, (3, 24, 30), np.float64), None, Box(0, 1, (3, 24, 30), np.float32)),
    (Box(-1, 1, (24, 30, 3)), None, Box(-1, 1, (24, 30, 3), np.float32)),
    (Box(0, 255, (24, 30, 3), np.float64), None, RescaledBox(0, 1, (24, 30, 3), np.float32)),
    (Box(-9, 3, (1, 24, 30)), None, RescaledBox(0, 1, (1, 24, 30), np.float32)),
    (Box(0, np.inf, (3, 24, 30)), None, Box(0, np.inf, (3, 24, 30), np.float32)),
    (Box(0, 255, (24, 30, 3), np.int32), None, RescaledBox(0, 1, (24, 30, 3), np.float32)),
    (Box(0, 65_535, (1, 24, 30), np.uint16), None, RescaledBox(0, 1, (1, 24, 30), np.float32)),
    (Box(0, 255, (24, 30), np.int32), None, Box(0, 255, (24 * 30,), np.float32)),
    (Box(0, 255, (19, 30, 3)), None, Box(0, 255, (19 * 30 * 3,), np.float32)),
    (Discrete(10_000_000), None, Box(0, 1, (24,), np.float32)),
    (Box(0, 1, (24, 30), np.uint8), None, Box(0, 1, (1, 24, 30), np.uint8)),
    (Box(0, 255, (4, 24, 30, 1), np.uint8), None, Box(0, 255, (4, 24, 30), np.uint8)),
    (Tuple((UNIT, Dict(c=UNIT))), None, Box(-1, 1, (4,), np.float32)),
    (Box(0, 255, (4,), np.uint8), None, Box(0, 255, (4,), np.float32)),
    (Box(0, 255, (8, 8, 3), np.uint8), None, Box(0, 255, (8, 8, 3), np.uint8)),
    (
        Dict(b=UNIT, a=Box(0, 1, ())),
        None,
        Box(np.array([-1, -1, 0], np.float32), np.ones(3, np.float32)),
    ),
    (Dict(b=UNIT, a=Box(0, 1, ())), ["b"], Box(-1, 1, (2,), np.float32)),
    (Dict(b=UNIT, text=Text(4)), ["b"], Box(-1, 1, (2,), np.float32)),
    (Dict(a=Box(0, 1, (4, 5))), None, Box(0, 1, (20,), np.float32)),
    (Dict(image=Box(0, 255, (2, 2, 3), np.uint8)), None, Box(0, 255, (2, 2, 3), np.uint8)),
    (
        Dict(image=Box(0, 255, (2, 2, 3), np.uint8), b=UNIT),
        ["image"],
        Box(0, 255, (2, 2, 3), np.uint8),
    ),
    (Discrete(3), None, Box(0, 1, (3,), np.float32)),
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


def test_pictures_of_floats_lie_between_0_and_1_by_their_bounds():
    """Each of two, a depth without an upper bound left as it is, as a policy's images."""
    colours = Box(0, 255, (24, 24, 3), np.float64)
    depth = np.full((2, 22, 22), 50, np.float32)
    depth[1] = np.inf
    native = Dict(a=colours, b=Box(np.full_like(depth, -50), depth))
    simulator = echo(observation=native)
    references = [deepcopy(native) for _ in range(2)]
    for seed, reference in enumerate(references):
        reference.seed(seed)
    for row, reference in zip(simulator.reset(), references, strict=True):
        shown, parts = reference.sample(), unflatten(simulator.observation_space, row)
        np.testing.assert_allclose(parts["image"], shown["a"] / 255, rtol=1e-5, atol=1e-6)
        depth = np.stack([shown["b"][0] / 100 + 0.5, shown["b"][1]])
        np.testing.assert_allclose(parts["image_2"], depth, rtol=1e-5, atol=1e-6)


def test_entries_of_the_same_name_are_refused():
    native = Dict({"a.b": UNIT, "a": Dict(b=UNIT)})
    with pytest.raises(ConfigurationError, match=r"observes two entries 'a\.b', expected names"):
        echo(observation=native)
    native = Dict({"a.b": UNIT, "a": Dict(b=UNIT), "x": UNIT})
    assert echo(observation=native, observation_keys=["x"]).observation_space.shape == (2,)


FLAT = [
    Discrete(4),
    Discrete(3, start=-1),
    MultiDiscrete([3, 2, 4]),
    MultiDiscrete([3, 2], start=[5, -2]),
    MultiDiscrete(np.array([[2, 3], [4, 1]])),
    MultiBinary(4),
    MultiBinary((2, 3)),
    Dict(
        a=UNIT, n=Discrete(3), m=MultiDiscrete([2, 3]), grid=Box(-1, 1, (2, 2)), bits=MultiBinary(2)
    ),
]


@pytest.mark.parametrize(
    ("native", "mode"),
    [
        *((space, "sync") for space in FLAT),
        pytest.param(FLAT[-1], "async", marks=pytest.mark.heavy),
    ],
    ids=str,
)
def test_discrete_observations_are_flattened_as_gymnasium_does(native, mode):
    simulator = echo(observation=native, vectorization_mode=mode, num_envs=3)
    flat = flatten_space(native)
    assert simulator.observation_space.shape == flat.shape
    assert simulator.observation_space.dtype == np.float32
    references = [deepcopy(native) for _ in range(3)]
    for seed, reference in enumerate(references):
        reference.seed(seed)
    for t in range(20):
        observation = simulator.step(np.zeros(3, np.int64)).observation if t else simulator.reset()
        expected = [flatten(reference, reference.sample()) for reference in references]
        np.testing.assert_allclose(observation, np.array(expected), rtol=1e-6)
    simulator.close()


IMAGE = Box(0, 255, (4, 3, 2), np.uint8)
MASK = Box(np.array([[1], [0]]), np.array([[1], [1]]), dtype=np.int8)  # one is always allowed
SEVERAL = Dict(action_mask=MASK, a=UNIT, image=IMAGE, n=Discrete(3, start=1))


def test_images_vectors_and_masks_are_the_parts_of_a_row():
    """Gymnasium itself takes the rows apart again."""
    simulator = echo(observation=SEVERAL, num_envs=3)
    space = simulator.observation_space
    assert isinstance(space, Dict)
    assert {name: part.shape for name, part in space.items()} == {
        "vector": (5,),
        "image": (4, 3, 2),
        "action_mask": (2,),
    }
    references = [deepcopy(SEVERAL) for _ in range(3)]
    for seed, reference in enumerate(references):
        reference.seed(seed)
    for t in range(5):
        rows = simulator.step(np.zeros(3, np.int64)).observation if t else simulator.reset()
        assert (rows.dtype, rows.shape) == (np.float32, (3, 5 + 24 + 2))
        for row, reference in zip(rows, references, strict=True):
            native, parts = reference.sample(), unflatten(space, row)
            np.testing.assert_array_equal(parts["image"], native["image"])
            np.testing.assert_array_equal(parts["action_mask"], native["action_mask"].ravel())
            vector = [*native["a"], *np.eye(3)[native["n"] - 1]]
            np.testing.assert_allclose(parts["vector"], vector, rtol=1e-6)


def test_parts_that_are_left_out_leave_a_plain_array():
    image = echo(observation=SEVERAL, observation_keys=["image"])
    vector = echo(observation=SEVERAL, observation_keys=["n", "a"])
    assert image.observation_space == IMAGE
    expected = Box(np.array([0, 0, 0, -1, -1], np.float32), np.ones(5, np.float32))
    assert vector.observation_space == expected


UNSUPPORTED = [
    ({"observation": Text(5)}, "observes Text("),
    ({"observation": Dict(t=Text(3))}, "observes nothing, expected some numbers"),
    ({"observation": Sequence(UNIT)}, "observes Sequence("),
    ({"observation": Graph(UNIT, None)}, "observes Graph("),
    ({"observation": Box(0, 255, (4, 84, 84, 3), np.uint8)}, "expected pictures [C, H, W] or"),
    (
        {"observation": Dict(i=Dict(action_mask=MASK), j=Dict(action_mask=MASK), v=UNIT)},
        "observes the masks i.action_mask and j.action_mask, expected one",
    ),
    ({"observation": Dict()}, "observes nothing, expected some numbers"),
    ({"observation": Dict(action_mask=MultiBinary(3))}, "observes nothing but an action mask"),
    (
        {"observation": Dict(a=UNIT, action_mask=MultiDiscrete([2, 2]))},
        "has the action_mask MultiDiscrete([2 2]), expected a MultiBinary or Box",
    ),
    ({"observation": Box(0, 1, (0,))}, "observes nothing, expected some numbers"),
    ({"action": Box(0, 1, (0,))}, "of 0 choices or numbers, expected 1 to"),
    ({"action": Discrete(10**12)}, "of 1000000000000 choices or numbers, expected 1 to"),
    ({"action": Box(-(2**63), 2**63 - 1, (2,), np.int64)}, "choices or numbers, expected 1 to"),
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, -1e30])
def test_rewards_that_are_not_finite_or_huge_stop_the_run(value):
    simulator = echo(rewards=(1.0, value), num_envs=3)
    simulator.reset()
    simulator.step(np.zeros(3, np.int64))
    with np.errstate(over="ignore"):
        shown = np.float32(value)
        with pytest.raises(SimulationError) as caught:
            simulator.step(np.zeros(3, np.int64))
    assert f"environment 0 of 'Echo-v0' returned the reward {shown}" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, 1e25])
def test_observations_that_are_not_finite_or_huge_stop_the_run(monkeypatch, value):
    simulator = echo()
    simulator.reset()
    monkeypatch.setattr(Box, "sample", lambda self: np.array([0.0, value]))
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


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
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


class Global(Echo):
    """Observes what generators of the whole process draw, and how it takes signals."""

    def __init__(self):
        super().__init__(observation=Box(-1, 1, (4,), np.float32))

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        own_group = os.getpgid(0) == os.getpid()
        as_asked = handlers == [signal.SIG_DFL, signal.SIG_IGN] and own_group
        return np.array([*draws, as_asked], np.float32), info


@pytest.mark.heavy
def test_processes_of_their_own_draw_their_own_numbers_and_do_not_hear_the_run_s_signals():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    state = torch.get_rng_state()
    spec = EnvironmentSpec("Global-v0", options={"vectorization_mode": "async"})
    rows = []
    for seeds in ([3, 4, 5], [3, 4, 6]):
        simulator = make_simulator(spec, seeds)
        rows.append(simulator.reset())
        simulator.close()
    assert rows[0][:, 3].all()
    np.testing.assert_array_equal(rows[0][:2], rows[1][:2])
    assert all(len(np.unique(column)) == 4 for column in np.concatenate(rows)[:, :3].T)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert torch.equal(torch.get_rng_state(), state)


class Colours(Echo):
    """Its pictures: every pixel of frame t of an episode is 10 t + 1, its three colours equal."""

    def __init__(self, length=5):
        super().__init__(observation=Box(0, 255, (6, 4, 3), np.uint8))
        self._length = length

    def _picture(self):
        return np.full((6, 4, 3), 10 * self.t + 1, np.uint8)

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        return self._picture(), info

    def step(self, action) -> Any:
        super().step(action)
        return self._picture(), 1.0, False, self.t == self._length, {}


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
def test_frames_are_stacked_by_gymnasium_s_own_wrappers(mode):
    """And a new episode does not see the frames of the one before."""
    grey, stack = GrayscaleObservation, partial(FrameStackObservation, stack_size=3)
    spec = EnvironmentSpec(
        "Colours-v0", options={"vectorization_mode": mode}, wrappers=[grey, stack]
    )
    simulator = make_simulator(spec, [0, 1])
    assert spaces(spec) == (simulator.observation_space, Discrete(2))
    assert simulator.observation_space == Box(0, 255, (3, 6, 4), np.uint8)
    # without padding by zeros a first frame counts as its own past; the sixth row is a reset
    frames = [[1, 1, 1], [1, 1, 11], [1, 11, 21], [11, 21, 31], [21, 31, 41], [31, 41, 51]]
    for t, expected in enumerate([*frames, frames[0], frames[1]]):
        step = simulator.step(np.zeros(2, np.int64)) if t else None
        observation = step.observation if step else simulator.reset()
        assert observation.dtype == np.uint8
        np.testing.assert_array_equal(
            observation, np.broadcast_to(np.reshape(expected, (3, 1, 1)), (2, 3, 6, 4))
        )
        assert step is None or step.valid.all() == (t != 6)
    simulator.close()


BAD_WRAPPERS = [
    ({"wrappers": [{"stack_size": 4}]}, "is not a list of functions from an environment"),
    ({"wrappers": "FrameStackObservation"}, "is not a list of functions from an environment"),
    ({"wrappers": [lambda env: None]}, "returned None, expected an environment"),
    ({"wrappers": [FrameStackObservation]}, "missing 1 required positional argument: 'stack_size'"),
    ({"wrappers": [GrayscaleObservation], "backend": "envpool"}, "expected env.backend=gymnasium"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_WRAPPERS)
def test_bad_wrappers_are_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        spaces(EnvironmentSpec("Echo-v0", **arguments))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrappers_choose_gymnasium():
    wrapped = EnvironmentSpec("CartPole-v1", wrappers=[partial(TimeLimit, max_episode_steps=2)])
    simulator = make_simulator(wrapped, [0])
    assert type(simulator).__name__ == "GymnasiumSimulator"
    simulator.reset()
    flags = [bool(simulator.step(np.zeros(1, np.int64)).truncated[0]) for _ in range(6)]
    assert flags == [False, True, False, False, True, False]


@pytest.mark.heavy
def test_what_is_no_number_may_be_left_out_of_processes_of_their_own():
    """Gymnasium has no memory to share for it."""
    native = Dict(b=UNIT, things=Sequence(UNIT), text=Text(4))
    simulator = echo(observation=native, vectorization_mode="async")
    reference = deepcopy(native)
    reference.seed(0)
    np.testing.assert_allclose(simulator.reset()[0], reference.sample()["b"], rtol=1e-6)
    simulator.close()
