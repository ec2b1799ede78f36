"""The EnvPool simulator on real environments: what it returns, and what it refuses."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, flatten, unflatten

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.simulators import EnvironmentSpec, Simulator, Step, make_simulator, spaces
from ppo1_lightning.simulators.placement import started_threads


def roll(simulator: Simulator, num_steps: int, seed: int = 0) -> list[Step]:
    """Step with random actions."""
    rng = np.random.default_rng(seed)
    space = simulator.action_space
    shape = (num_steps, simulator.num_envs, *(space.shape or ()))
    if isinstance(space, Discrete):
        actions = rng.integers(0, space.n, shape)
    else:
        actions = rng.normal(size=shape).astype(np.float32)
    return [simulator.step(action) for action in actions]


def test_cartpole_invalid_rows_follow_ends_and_carry_no_reward():
    simulator = make_simulator(EnvironmentSpec("CartPole-v1", "envpool"), [1, 2, 3])
    first = simulator.reset()
    assert first.shape == (3, 4)
    assert first.dtype == np.float32
    ended = np.zeros(3, bool)
    steps = roll(simulator, 200)
    for step in steps:
        np.testing.assert_array_equal(step.valid, ~ended)
        np.testing.assert_array_equal(step.raw_reward, step.valid.astype(np.float32))
        assert not (step.terminated & ~step.valid).any()
        # The final observation is the fallen pole; the row after it, a fresh start.
        fallen = (np.abs(step.observation[:, 2]) > 0.2095) | (np.abs(step.observation[:, 0]) > 2.4)
        np.testing.assert_array_equal(step.terminated, fallen)
        assert (np.abs(step.observation[~step.valid]) <= 0.05).all()
        ended = step.terminated | step.truncated
    assert not any(step.truncated.any() for step in steps)


def test_cartpole_time_limit_truncates():
    options = {"max_episode_steps": 5}
    simulator = make_simulator(EnvironmentSpec("CartPole-v1", options=options), [0, 1])
    simulator.reset()
    steps = roll(simulator, 12)
    assert [bool(s.truncated.all()) for s in steps] == [t % 6 == 4 for t in range(12)]
    assert not any(s.terminated.any() for s in steps)
    assert all((s.episode_over == s.truncated).all() for s in steps)


def test_both_libraries_have_the_same_interface():
    reports = []
    for backend in ("envpool", "gymnasium"):
        spec = EnvironmentSpec("CartPole-v1", backend)  # type: ignore[arg-type]
        simulator = make_simulator(spec, [0, 1])
        assert spaces(spec) == (simulator.observation_space, simulator.action_space)
        observation = simulator.reset()
        step = roll(simulator, 1)[0]
        arrays = [(a.dtype, a.shape) for a in (observation, *step)]
        reports.append((simulator.observation_space, simulator.action_space, arrays))
        simulator.close()
    assert reports[0] == reports[1]


@pytest.mark.heavy
def test_atari_tells_lives_from_games():
    spec = EnvironmentSpec("Breakout-v5", options={"episodic_life": True})
    simulator = make_simulator(spec, [4, 5])
    observation = simulator.reset()
    assert observation.shape == (2, 4, 84, 84)
    assert observation.dtype == np.uint8
    assert simulator.action_space == Discrete(4)
    steps = roll(simulator, 500)
    terminated, over, valid = (
        np.array([getattr(step, name) for step in steps])
        for name in ("terminated", "episode_over", "valid")
    )
    np.testing.assert_array_equal(valid[1:], ~terminated[:-1])
    for env in range(2):
        endings = over[terminated[:, env], env]  # one entry per lost life
        games = int(endings.sum())
        assert games >= 1
        # Breakout has five lives: the game is over with every fifth, and only then.
        np.testing.assert_array_equal(endings, [i % 5 == 4 for i in range(len(endings))])


@pytest.mark.heavy
def test_atari_tells_raw_from_clipped_rewards():
    spec = EnvironmentSpec("SpaceInvaders-v5", options={"reward_clip": True}, reward_scale=0.5)
    simulator = make_simulator(spec, [0])
    simulator.reset()
    steps = roll(simulator, 150)
    reward, raw = (np.array([getattr(s, name) for s in steps]) for name in ("reward", "raw_reward"))
    np.testing.assert_array_equal(reward, np.sign(raw) * 0.5)
    assert raw.max() >= 5  # the cheapest invader


def test_dict_observations_are_concatenated_in_the_given_order():
    keys = ["desired_goal", "observation"]
    chosen = EnvironmentSpec("FetchReach-v4", observation_keys=keys)
    everything = EnvironmentSpec("FetchReach-v4")
    simulators = [make_simulator(spec, [3, 4]) for spec in (chosen, everything)]
    parts, whole = (simulator.reset() for simulator in simulators)
    assert parts.shape == (2, 13)
    assert parts.dtype == np.float32
    assert whole.shape == (2, 16)  # observation 10, achieved_goal 3, desired_goal 3
    np.testing.assert_array_equal(parts, np.concatenate([whole[:, 13:], whole[:, :10]], axis=1))
    assert simulators[0].observation_space.shape == (13,)
    step = roll(simulators[0], 1)[0]
    assert step.observation.shape == (2, 13)


FLATTENED = ["FrozenLake-v1", "Taxi-v3", "FetchReach-v4", "Jumanji/Knapsack-v1", "SpotGetup-v1"]


@pytest.mark.parametrize("env_id", FLATTENED)
def test_discrete_and_dict_observations_are_flattened_as_gymnasium_does(env_id):
    import envpool

    simulator = make_simulator(EnvironmentSpec(env_id, "envpool"), [3, 4])
    pool = envpool.make_gymnasium(env_id, num_envs=2, seed=[3, 4])
    space = pool.observation_space
    rng = np.random.default_rng(0)
    for t in range(20):
        if t == 0:
            observation, native = simulator.reset(), pool.reset()[0]
        else:
            is_box = isinstance(simulator.action_space, Box)
            size = (2, *(simulator.action_space.shape or ()))
            action = rng.normal(size=size).astype(np.float32) if is_box else rng.integers(4, size=2)
            observation, native = simulator.step(action).observation, pool.step(action)[0]
        rows = [
            {k: v[i] for k, v in native.items()} if isinstance(native, dict) else native[i]
            for i in range(2)
        ]
        expected = [flatten(space, row) for row in rows]
        np.testing.assert_array_equal(observation, np.array(expected, np.float32))


def test_float64_becomes_float32_in_values_and_spaces():
    import envpool

    spec = EnvironmentSpec("HalfCheetah-v4", reward_scale=0.1)
    simulator = make_simulator(spec, [7, 8])
    pool = envpool.make_gymnasium("HalfCheetah-v4", num_envs=2, seed=[7, 8])
    native = pool.reset()[0]
    assert native.dtype == np.float64
    np.testing.assert_array_equal(simulator.reset(), native.astype(np.float32))
    action = np.full((2, 6), 0.5, np.float32)
    step, (native, reward, *_) = simulator.step(action), pool.step(action)
    np.testing.assert_array_equal(step.observation, native.astype(np.float32))
    np.testing.assert_array_equal(step.raw_reward, reward)
    np.testing.assert_allclose(step.reward, reward * 0.1, rtol=1e-6)
    assert simulator.observation_space.dtype == simulator.action_space.dtype == np.float32


def test_missing_bounds_are_infinite():
    space, _ = spaces(EnvironmentSpec("LunarLander-v3", "envpool"))
    assert isinstance(space, Box)
    assert np.isinf(space.low).all()
    assert np.isinf(space.high).all()
    space, _ = spaces(EnvironmentSpec("CheetahRun-v1", "envpool"))
    assert space == Box(-np.inf, np.inf, (17,), np.float32)


def test_clipping_protects_the_environment_and_leaves_the_action_alone():
    action = np.full((1, 6), 3, np.float32)
    rewards = {}
    for clip in (False, True):
        simulator = make_simulator(EnvironmentSpec("HalfCheetah-v4", clip_actions=clip), [0])
        simulator.reset()
        rewards[clip] = float(simulator.step(action).raw_reward[0])
    np.testing.assert_array_equal(action, 3)
    # The physics clamps by itself, the control cost 0.1 * |a|^2 does not: 5.4 against 0.6.
    assert rewards[True] - rewards[False] == pytest.approx(4.8, abs=1e-3)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "HalfCheetah-v4", "Breakout-v5"])
def test_a_later_step_changes_no_earlier_array(env_id):
    simulator = make_simulator(EnvironmentSpec(env_id), [0, 1])
    first = simulator.reset()
    steps = roll(simulator, 2)
    arrays = [first, *(array for step in steps for array in step)]
    before = [array.copy() for array in arrays]
    roll(simulator, 30, seed=1)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_equal_seeds_repeat_and_others_differ():
    def trace(seeds, num_threads):
        simulator = make_simulator(EnvironmentSpec("CartPole-v1", num_threads=num_threads), seeds)
        return [simulator.reset(), *(step.observation for step in roll(simulator, 40))]

    reference = trace([5, 6, 9], 1)
    np.testing.assert_array_equal(reference, trace([5, 6, 9], 2))
    other = trace([5, 10, 11], 1)
    np.testing.assert_array_equal([o[0] for o in reference], [o[0] for o in other])
    assert not np.isin(reference[0][1:], other[0]).any()
    assert len(np.unique(reference[0], axis=0)) == 3


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts Linux threads")
def test_close_frees_the_threads():
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    simulator = make_simulator(EnvironmentSpec("CartPole-v1", num_threads=7), list(range(8)))
    simulator.reset()
    assert len(os.listdir("/proc/self/task")) >= before + 7
    simulator.close()
    simulator.close()
    assert len(os.listdir("/proc/self/task")) < before + 7
    with pytest.raises(RuntimeError, match="closed"):
        simulator.reset()


def test_stepping_needs_a_reset_first():
    simulator = make_simulator(EnvironmentSpec("CartPole-v1"), [0])
    with pytest.raises(RuntimeError, match="reset"):
        simulator.step(np.zeros(1, np.int64))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts Linux threads")
def test_there_are_as_many_threads_as_environments_or_cores():
    spec = EnvironmentSpec("InvertedPendulum-v4", pin_threads=False)

    def workers(num_envs: int, cores: int) -> int:
        with started_threads() as threads:
            simulator = make_simulator(spec, range(num_envs), cores=range(cores))
        simulator.close()
        return len(threads) - 1  # one more prepares buffers

    assert [workers(n, cores=8) for n in (1, 6, 64)] == [1, 6, 8]
    assert [workers(n, cores=2) for n in (1, 6, 64)] == [1, 2, 2]
    assert workers(64, cores=0) == 1  # there are more ranks than cores


BAD_OPTIONS = [
    ("Pong-v5", {"noop_max": 0}, "noop_max=0 is out of range, expected at least 1"),
    ("Pong-v5", {"stack_num": 0}, "stack_num=0 is out of range"),
    ("Pong-v5", {"img_height": -3}, "img_height=-3 is out of range"),
    ("Pong-v5", {"noop_max": 2**40}, "noop_max=1099511627776 is out of range"),
    ("Pong-v5", {"frame_skip": "4"}, "frame_skip='4' is not a finite number"),
    ("Pong-v5", {"frame_skip": 4.5}, "frame_skip=4.5 is not a whole number"),
    ("Pong-v5", {"episodic_life": 1}, "episodic_life=1 is not true or false"),
    ("Pong-v5", {"repeat_action_probability": "x"}, "'x' is not a finite number"),
    ("Pong-v5", {"episodic_lives": True}, "did you mean 'episodic_life'"),
    ("Pong-v5", {"mode": 77}, "EnvPool cannot make 'Pong-v5' with {'mode': 77}: Invalid game mode"),
    ("Pong-v5", {"task": "breakout"}, "cannot be set here, expected it absent: the id chooses it"),
    ("HalfCheetah-v4", {"xml_file": 3}, "xml_file=3 has the wrong type"),
    ("HalfCheetah-v4", {"ctrl_cost_weight": float("nan")}, "is not a finite number"),
    ("CartPole-v1", {"num_envs": 4}, "set num_envs of the run"),
    ("CartPole-v1", {"batch_size": 4}, "stepped together"),
    ("CartPole-v1", {"seed": 4}, "set the seed of the run"),
    ("CartPole-v1", {"num_threads": 4}, "set num_threads beside options"),
    ("CartPole-v1", {"env_type": "dm"}, "the interface is fixed"),
    ("CartPole-v1", ["noop_max"], "is not a mapping"),
]


@pytest.mark.parametrize(("env_id", "options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_in_one_line(env_id, options, message):
    for make in (spaces, lambda spec: make_simulator(spec, [0])):
        with pytest.raises(ConfigurationError) as caught:
            make(EnvironmentSpec(env_id, "envpool", options=options))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


BAD_ACTIONS = [
    ("CartPole-v1", np.zeros(2, np.int64), "shape (2,), expected (3,)"),
    ("CartPole-v1", np.zeros(4, np.int64), "shape (4,), expected (3,)"),
    ("CartPole-v1", np.zeros((3, 1), np.int64), "shape (3, 1), expected (3,)"),
    ("CartPole-v1", np.zeros(3, np.float32), "dtype float32, expected integers"),
    ("CartPole-v1", np.zeros(3, bool), "dtype bool, expected integers"),
    ("CartPole-v1", np.array([0, 2, 1]), "action 2 of environment 1 is out of range"),
    ("CartPole-v1", np.array([0, 1, -1]), "action -1 of environment 2 is out of range"),
    ("Pendulum-v1", np.zeros((3, 2), np.float32), "shape (3, 2), expected (3, 1)"),
    ("Pendulum-v1", np.zeros((3, 1), np.int64), "dtype int64, expected floats"),
    ("Pendulum-v1", np.array([[0.0], [np.nan], [0]]), "[nan] of environment 1"),
    ("Pendulum-v1", np.array([[0.0], [1], [np.inf]]), "[inf] of environment 2"),
]


@pytest.mark.parametrize(("env_id", "action", "message"), BAD_ACTIONS)
def test_bad_actions_never_reach_the_simulator(env_id, action, message):
    simulator = make_simulator(EnvironmentSpec(env_id, "envpool"), [0, 1, 2])
    simulator.reset()
    with pytest.raises(ConfigurationError) as caught:
        simulator.step(action)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    roll(simulator, 1)  # the good ones still do


UNKNOWN_IDS = [
    ("ALE/Pong-v5", "envpool", "did you mean 'Pong-v5'"),
    ("PongNoFrameskip-v4", "auto", "did you mean 'Pong-v5'"),
    ("PongNoFrameskip-v4", "gymnasium", "Pong-v5'"),
    ("Pong-ram-v0", "auto", "did you mean 'Pong-v5'"),
    ("BreakoutDeterministic-v4", "envpool", "did you mean 'Breakout-v5'"),
    ("SpaceInvaders-ramNoFrameskip-v4", "envpool", "did you mean 'SpaceInvaders-v5'"),
    ("CartPole-v7", "auto", "'CartPole-v1'"),
    ("cartpole-v1", "envpool", "'CartPole-v1'"),
    ("HalfCheeta-v4", "envpool", "'HalfCheetah-v4'"),
    ("Carpole-v1", "gymnasium", "'CartPole-v1'"),
    ("xyzzy", "auto", "unknown to EnvPool and Gymnasium, expected one such as 'CartPole-v1'"),
    ("", "auto", "is not a name"),
]


@pytest.mark.parametrize(("env_id", "backend", "message"), UNKNOWN_IDS)
def test_unknown_ids_lead_to_the_nearest(env_id, backend, message):
    with pytest.raises(ConfigurationError) as caught:
        spaces(EnvironmentSpec(env_id, backend))
    assert message in str(caught.value)


REFUSED = [
    (lambda: EnvironmentSpec("CartPole-v1", "envpol"), "did you mean 'envpool'"),  # type: ignore[arg-type]
    (lambda: EnvironmentSpec("CartPole-v1", num_threads=0), "num_threads=0 is out of range"),
    (lambda: EnvironmentSpec("CartPole-v1", num_threads=-1), "num_threads=-1 is out of range"),
    (lambda: EnvironmentSpec("CartPole-v1", reward_scale=0), "reward_scale=0 is out of range"),
    (lambda: EnvironmentSpec("CartPole-v1", reward_scale=float("nan")), "not a finite number"),
    (lambda: EnvironmentSpec("CartPole-v1", clip_actions="no"), "not true or false"),  # type: ignore[arg-type]
    (lambda: EnvironmentSpec("CartPole-v1", observation_keys=["x"]), "not a Dict"),
    (
        lambda: EnvironmentSpec("FetchReach-v4", observation_keys=["goal"]),
        "did you mean 'desired_goal'",
    ),
    (
        lambda: EnvironmentSpec("FetchReach-v4", observation_keys="observation"),
        "is not a list of names",
    ),
    (lambda: EnvironmentSpec("FetchReach-v4", observation_keys=[]), "is not a list of names"),
    (lambda: EnvironmentSpec("FetchReach-v4", observation_keys=["observation"] * 2), "name twice"),
    (lambda: EnvironmentSpec("TicTacToe-v1"), "several players"),
]


@pytest.mark.parametrize(("make_spec", "message"), REFUSED)
def test_specifications_that_cannot_work_are_refused(make_spec, message):
    with pytest.raises(ConfigurationError) as caught:
        make_simulator(make_spec(), [0])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seeds", [[], [-1], [2**31], [0, 2**40]])
def test_seeds_outside_int32_are_refused(seeds):
    with pytest.raises(ConfigurationError, match="seed"):
        make_simulator(EnvironmentSpec("CartPole-v1"), seeds)


def test_an_image_may_be_picked_from_a_dict():
    spec = EnvironmentSpec("MiniGrid-Empty-5x5-v0", observation_keys=["image"])
    simulator = make_simulator(spec, [0, 1])
    assert simulator.observation_space == Box(0, 255, (7, 7, 3), np.uint8)
    observation = simulator.reset()
    assert observation.shape == (2, 7, 7, 3)
    assert observation.dtype == np.uint8


def test_an_image_and_numbers_share_a_row():
    import envpool

    env_id, keys = "MiniGrid-Empty-5x5-v0", ["image", "direction"]
    simulator = make_simulator(EnvironmentSpec(env_id, observation_keys=keys), [5, 6])
    pool = envpool.make_gymnasium(env_id, num_envs=2, seed=[5, 6])
    for t in range(10):
        action = np.full(2, t % 3)
        native = pool.step(action)[0] if t else pool.reset()[0]
        rows = simulator.step(action).observation if t else simulator.reset()
        for i, row in enumerate(rows):
            parts = unflatten(simulator.observation_space, row)
            np.testing.assert_array_equal(parts["image"], native["image"][i])
            np.testing.assert_array_equal(parts["vector"], np.eye(4)[native["direction"][i]])


@pytest.mark.heavy
def test_envpool_is_imported_only_when_it_is_needed():
    code = (
        "import sys, ppo1_lightning.simulators as s\n"
        "assert 'envpool' not in sys.modules\n"
        "s.spaces(s.EnvironmentSpec('CartPole-v1', 'gymnasium'))\n"
        "assert 'envpool' not in sys.modules\n"
        "s.spaces(s.EnvironmentSpec('CartPole-v1'))\n"
        "assert 'envpool' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
