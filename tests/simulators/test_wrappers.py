"""Masks that an environment gives in its info are those of the policy's observations."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Dict

from ppo1_lightning import ConfigurationError
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator, spaces
from ppo1_lightning.simulators.wrappers import ActionMaskFromInfo


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
def test_taxi_s_mask_is_observed(mode):
    spec = EnvironmentSpec(
        "Taxi-v4", options={"vectorization_mode": mode}, wrappers=[ActionMaskFromInfo]
    )
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
    with pytest.raises(ConfigurationError, match="expected Discrete actions to mask, found Box"):
        spaces(spec)
