"""Masks that an environment gives in its info are those of the policy's observations."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from ppo1_lightning import ConfigurationError
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator, spaces
from ppo1_lightning.simulators.wrappers import ActionMaskFromInfo, SignReward, tell_unseen_mask

KEYS: dict[str, Any] = {"observation_keys": ["observation", "action_mask"]}


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("asked", [{"wrappers": [ActionMaskFromInfo]}, KEYS])
def test_taxi_s_mask_is_observed(mode, asked):
    spec = EnvironmentSpec("Taxi-v4", "gymnasium", options={"vectorization_mode": mode}, **asked)
    simulator = make_simulator(spec, [3, 4])
    assert isinstance(simulator.observation_space, Dict)
    taxi = gymnasium.make("Taxi-v4").unwrapped
    rows, masks = simulator.reset(), []
    for t in range(20):
        for row in rows:
            state, mask = row[:500].argmax(), row[500:]
            assert row[:500].sum() == 1
            np.testing.assert_array_equal(mask, taxi.action_mask(int(state)))  # type: ignore[attr-defined]
            masks.append(mask)
        rows = simulator.step(np.array([t % 6, (t + 2) % 4])).observation
    assert len(np.unique(masks, axis=0)) > 3
    simulator.close()


@pytest.mark.parametrize(
    ("wrapper", "advice"),
    [
        (gymnasium.wrappers.NormalizeObservation, "policy.normalize_observations"),
        (gymnasium.wrappers.NormalizeReward, "algo.normalize_returns"),
    ],
)
@pytest.mark.parametrize("others", [[], [gymnasium.wrappers.RecordEpisodeStatistics]])
def test_running_statistics_are_refused(wrapper, advice, others):
    spec = EnvironmentSpec("Pendulum-v1", wrappers=[wrapper, *others])
    with pytest.raises(ConfigurationError, match=f"{wrapper.__name__} keeps .*{advice}"):
        spaces(spec)


def test_actions_that_have_no_mask_are_refused():
    spec = EnvironmentSpec("Pendulum-v1", wrappers=[ActionMaskFromInfo])
    with pytest.raises(ConfigurationError, match=r"\(Multi\)Discrete actions to mask, found"):
        spaces(spec)


def test_a_mask_that_is_not_asked_for_is_not_looked_at_and_told_once(caplog):
    tell_unseen_mask.cache_clear()
    for _ in range(2):
        simulator = make_simulator(EnvironmentSpec("Taxi-v4", "gymnasium"), [0, 1])
        assert simulator.reset().shape == (2, 500)
    told = [r.getMessage() for r in caplog.records if "action_mask" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("environment 'Taxi-v4' has an action_mask in its info, which is not")


@pytest.mark.parametrize(
    "fields", [{"observation_keys": ["seen"]}, {}], ids=["left out on purpose", "no choices"]
)
def test_a_mask_that_could_not_be_obeyed_is_not_told(fields, caplog):
    class Masking(gymnasium.Env):
        observation_space = Dict(seen=Box(-1, 1, (2,)))
        action_space = Discrete(2) if fields else Box(-1, 1, (2,))

        def reset(self, *, seed=None, options=None):
            return {"seen": np.zeros(2, np.float32)}, {"action_mask": np.ones(2, np.int8)}

    tell_unseen_mask.cache_clear()
    gymnasium.register("Masking-v0", Masking)  # type: ignore[arg-type]
    make_simulator(EnvironmentSpec("Masking-v0", "gymnasium", **fields), [0]).reset()
    del gymnasium.registry["Masking-v0"]
    assert not caplog.records


NUMBERS = "expected 1 for what is allowed, else 0"
SHAPE = r"expected \(3,\), one number for each choice"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        *((mask, NUMBERS) for mask in ([0, -1e9, 0], [0, 0.5, 1], [0, 255, 255])),
        *((mask, SHAPE) for mask in ([1, 0], [1, 0, 1, 1], [[1, 0, 1], [1, 1, 1]], 1, [])),
    ],
)
def test_a_mask_in_info_that_is_none_is_refused(mask, message):
    """Before processes of their own would make whole numbers of others than 0 and 1."""

    class Masking(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (2,)), Discrete(3)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {"action_mask": np.array(mask)}

    with pytest.raises(ConfigurationError, match=message):
        ActionMaskFromInfo(Masking()).reset()


@pytest.mark.parametrize("joined", [False, True, "list"])
def test_masks_in_info_of_several_numbers_are_observed(joined):
    class Masking(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (2,)), MultiDiscrete([2, 3])

        def reset(self, *, seed=None, options=None):
            mask = np.array([0, 1], np.int8), np.array([1, 0, 1], np.int8)
            forms = {True: np.concatenate(mask), False: mask, "list": [[0, 1], [1, 0, 1]]}
            info = {"action_mask": forms[joined]}
            return np.zeros(2, np.float32), info

    observation, _ = ActionMaskFromInfo(Masking()).reset()
    assert observation["action_mask"].tolist() == [0, 1, 1, 0, 1]


def test_a_joint_mask_in_info_makes_combinations_one_choice():
    class Masking(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (2,)), MultiDiscrete([2, 3])
        t = 0

        def _seen(self):
            mask = np.zeros((2, 3), np.int8)
            mask.flat[self.t % 6] = 1
            return np.zeros(2, np.float32), {"action_mask": mask}

        def reset(self, *, seed=None, options=None):
            return self._seen()

        def step(self, action):
            assert (action == np.unravel_index(self.t % 6, (2, 3))).all()
            self.t += 1
            observation, info = self._seen()
            return observation, 1.0, False, False, info

    gymnasium.register("Joint-v0", Masking)  # type: ignore[arg-type]
    simulator = make_simulator(EnvironmentSpec("Joint-v0", "gymnasium", **KEYS), [0])
    del gymnasium.registry["Joint-v0"]
    assert simulator.action_space == Discrete(6)
    row = simulator.reset()
    for t in range(7):
        np.testing.assert_array_equal(row, [[0, 0, *np.eye(6)[t % 6]]])
        row = simulator.step(np.array([t % 6])).observation


def test_a_mask_that_is_not_there_ends_in_one_line():
    simulator = make_simulator(EnvironmentSpec("FrozenLake-v1", "gymnasium", **KEYS), [0])
    with pytest.raises(ConfigurationError, match=r"FrozenLake.* gives no action_mask in its info"):
        simulator.reset()


def test_rewards_are_reported_as_they_are_and_learned_from_by_their_sign():
    simulator = make_simulator(EnvironmentSpec("Pendulum-v1", wrappers=[SignReward]), [0, 1])
    plain = make_simulator(EnvironmentSpec("Pendulum-v1", "gymnasium"), [0, 1])
    for each in (simulator, plain):
        each.reset()
    for _ in range(3):
        ours, theirs = (each.step(np.ones((2, 1), np.float32)) for each in (simulator, plain))
        np.testing.assert_array_equal(ours.raw_reward, theirs.raw_reward)
        np.testing.assert_array_equal(ours.reward, np.sign(theirs.reward))
