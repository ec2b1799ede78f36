"""Every row that a simulator returns, against an environment whose numbers are known."""

import itertools

import gymnasium
import numpy as np
import pytest
import scripted_env

from ppo1_lightning.simulators import EnvironmentSpec, make_simulator

SEEDS = [11, 5, 12345, 7]
ENV = "scripted_env:Scripted-v0"
NUM_STEPS = 60


def actions(simulator):
    return np.zeros((simulator.num_envs, *simulator.action_space.shape), np.int64)


def roll(simulator, num_steps):
    first = simulator.reset()
    return first, [simulator.step(actions(simulator)) for _ in range(num_steps)]


@pytest.mark.parametrize("num_pools", [1, 2, 4])
@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
def test_rows_are_those_of_the_script(mode, num_pools):
    options = {"vectorization_mode": mode}
    spec = EnvironmentSpec(ENV, options=options, reward_scale=0.5, num_pools=num_pools)
    simulator = make_simulator(spec, SEEDS)
    first, steps = roll(simulator, NUM_STEPS)
    simulator.close()
    for i, seed in enumerate(SEEDS):
        np.testing.assert_array_equal(first[i], scripted_env.observation(seed, 0, 0))
        for step, row in zip(steps, scripted_env.expected_rows(seed), strict=False):
            np.testing.assert_array_equal(step.observation[i], row.observation)
            assert step.raw_reward[i] == np.float32(row.reward)
            assert step.reward[i] == np.float32(row.reward) / 2
            assert step.terminated[i] == row.terminated
            assert step.truncated[i] == row.truncated
            assert step.valid[i] == row.valid
            assert step.episode_over[i] == (row.terminated or row.truncated)
    ends = [np.array([getattr(s, flag) for s in steps]) for flag in ("terminated", "truncated")]
    assert ends[0].any()
    assert ends[1].any()
    assert steps[0].reward.dtype == steps[0].raw_reward.dtype == np.float32


def test_rows_are_those_of_one_environment_stepped_by_hand():
    simulator = make_simulator(EnvironmentSpec(ENV), SEEDS[:1])
    first, steps = roll(simulator, NUM_STEPS)
    env = gymnasium.make("Scripted-v0")
    observation, _ = env.reset(seed=SEEDS[0])
    np.testing.assert_array_equal(first[0], observation)
    ended = False
    for step in steps:
        assert step.valid[0] == (not ended)
        if ended:
            (observation, _), reward, terminated, truncated = env.reset(), 0.0, False, False
        else:
            observation, reward, terminated, truncated, _ = env.step(0)
        np.testing.assert_array_equal(step.observation[0], observation)
        assert step.raw_reward[0] == np.float32(reward)
        assert (step.terminated[0], step.truncated[0]) == (terminated, truncated)
        ended = terminated or truncated


def test_failing_at_the_time_limit_is_terminated_only():
    script = [(2, "both"), (1, "truncated")]
    simulator = make_simulator(EnvironmentSpec(ENV, options={"script": script}), [0, 1])
    _, steps = roll(simulator, 10)
    for step, row in zip(steps, scripted_env.expected_rows(0, script), strict=False):
        assert step.terminated.tolist() == [row.terminated] * 2
        assert step.truncated.tolist() == [row.truncated] * 2
    assert not any((step.terminated & step.truncated).any() for step in steps)


def test_a_second_reset_starts_new_episodes_with_valid_rows():
    simulator = make_simulator(EnvironmentSpec(ENV, options={"script": [(3, "truncated")]}), [0])
    _, steps = roll(simulator, 3)
    assert steps[-1].truncated[0]
    np.testing.assert_array_equal(simulator.reset()[0], scripted_env.observation(0, 1, 0))
    assert simulator.step(actions(simulator)).valid[0]


def test_the_reference_has_the_lengths_of_its_script():
    rows = list(itertools.islice(scripted_env.expected_rows(0, [(2, "truncated")]), 6))
    assert [row.valid for row in rows] == [True, True, False] * 2
    assert [row.truncated for row in rows] == [False, True, False] * 2


def test_a_reset_row_is_never_trusted(monkeypatch):
    from ppo1_lightning.simulators.gymnasium import GymnasiumSimulator

    flags = [(False, False), (True, False), (False, True), (False, False), (False, False)]
    script = iter(flags)

    def native_step(self, pool):
        terminated, truncated = (np.array([flag]) for flag in next(script))
        nan_on_reset = np.array([np.nan if terminated or truncated else 1.0])
        reward = np.array([1.0]) if terminated else nan_on_reset
        return np.zeros((1, 3), np.float32), (reward, reward, terminated, truncated, terminated)

    monkeypatch.setattr(GymnasiumSimulator, "_receive", native_step)
    simulator = make_simulator(EnvironmentSpec(ENV), [0])
    _, steps = roll(simulator, len(flags))
    assert [bool(step.valid[0]) for step in steps] == [True, True, False, False, True]
    assert [bool(step.terminated[0]) for step in steps] == [False, True, False, False, False]
    assert not any(step.truncated[0] for step in steps)
    assert [float(step.reward[0]) for step in steps] == [1, 1, 0, 0, 1]
    assert [bool(step.episode_over[0]) for step in steps] == [False, True, False, False, False]
