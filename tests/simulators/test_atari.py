"""Atari of ale_py, prepared by Gymnasium's wrappers, beside EnvPool's."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import hydra
import numpy as np
import pytest
from gymnasium.spaces import Discrete

from ppo1_lightning.commands import ids
from ppo1_lightning.commands.config import config_directory, register_resolvers
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.simulators import EnvironmentSpec, Simulator, Step, make_simulator, spaces

needs_ale = pytest.mark.skipif(
    not all(map(find_spec, ("ale_py", "cv2"))),
    reason="the extra `atari` is not installed",
)
pytestmark = pytest.mark.heavy


def simulator_of(preset: str, env_id: str, *words: str) -> Any:
    """Return a preset's own simulator of one environment."""
    register_resolvers()
    ids.register()
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = hydra.compose("train", [f"env={preset}", f"env.id={env_id}", *words])
    return make_simulator(hydra.utils.instantiate(config.env), [3])


def both(game: str) -> list[Simulator]:
    """Return ale_py's and EnvPool's, which begin after the same frames, and so go on alike."""
    ours = simulator_of("atari_gymnasium", f"ALE/{game}-v5", "env.wrappers.0.noop_max=1")
    return [ours, simulator_of("atari", f"{game}-v5", "env.options.noop_max=1")]


def rolled(simulator: Simulator, num_steps: int) -> Step:
    """Return steps ``[T, 1]`` of random actions, the same ones for the same action space."""
    assert isinstance(simulator.action_space, Discrete)
    actions = np.random.default_rng(0).integers(0, simulator.action_space.n, (num_steps, 1))
    return Step(*map(np.stack, zip(*(simulator.step(action) for action in actions), strict=True)))


@needs_ale
def test_pong_is_envpool_s_to_the_pixel() -> None:
    """Resizing, the maximum of two frames, four frames a step, FIRE, stacked oldest first."""
    ours, theirs = both("Pong")
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    ours, theirs = rolled(ours, 200), rolled(theirs, 200)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.dtype == its.dtype
        np.testing.assert_array_equal(mine, its)
    assert ours.raw_reward.min() == -1


@needs_ale
def test_a_life_is_envpool_s_until_it_is_lost() -> None:
    ours, theirs = both("Breakout")
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    ours, theirs = rolled(ours, 100), rolled(theirs, 100)
    lost = int(theirs.terminated.argmax())
    assert lost > 10
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine[:lost], its[:lost])
    assert ours.terminated[lost]
    assert not ours.episode_over[lost]
    assert not ours.valid[lost + 1]
    assert not theirs.valid[lost + 1]
    again, its = ours.observation[lost + 1, 0], theirs.observation[lost + 1, 0]
    # Gymnasium begins a stack of its own, and leaves out the rest of the step in which it was lost
    assert (again == again[0]).all()
    assert (np.abs(again[-1].astype(int) - its[-1]) > 0).mean() < 0.01
    assert (again[-1] != ours.observation[0, 0, -1]).any()  # no new game


@needs_ale
def test_a_game_ends_with_its_last_life() -> None:
    simulator = simulator_of("atari_gymnasium", "ALE/Breakout-v5")
    simulator.reset()
    steps = rolled(simulator, 500)
    ended, over = steps.terminated[:, 0], steps.episode_over[:, 0]
    assert over.any()
    np.testing.assert_array_equal(over[ended], np.arange(ended.sum()) % 5 == 4)
    np.testing.assert_array_equal(steps.valid[1:, 0], ~ended[:-1])
    assert not steps.truncated.any()


@needs_ale
def test_rewards_are_learned_from_by_their_sign_and_reported_as_they_are() -> None:
    simulator = simulator_of("atari_gymnasium", "ALE/SpaceInvaders-v5", "env.reward_scale=0.5")
    simulator.reset()
    steps = rolled(simulator, 150)
    np.testing.assert_array_equal(steps.reward, np.sign(steps.raw_reward) * 0.5)
    assert steps.raw_reward.max() >= 5


@needs_ale
def test_a_step_is_four_frames_and_the_limit_truncates() -> None:
    limit = "+env.options.max_num_frames_per_episode=200"
    simulator = simulator_of("atari_gymnasium", "ALE/Breakout-v5", limit)
    simulator.reset()
    ale = simulator._pools[0].envs[0].unwrapped.ale
    begun = ale.getEpisodeFrameNumber()
    assert 1 <= begun <= 30
    still = np.array([0])  # the ball is not caught, but the first life lasts long enough
    for t in range(10):
        simulator.step(still)
        assert ale.getEpisodeFrameNumber() == begun + 4 * (t + 1)
    steps = [simulator.step(still) for _ in range(50)]
    end = next(step for step in steps if step.truncated[0])
    assert end.episode_over[0]
    assert not end.terminated[0]
    after = steps[[step.truncated[0] for step in steps].index(True) + 1]
    assert not after.valid[0]
    assert ale.lives() == 5  # of a new game


@needs_ale
def test_noops_come_before_fire() -> None:
    starts = set()
    simulator = simulator_of("atari_gymnasium", "ALE/Pong-v5", "+env.options.max_episode_steps=40")
    ale = simulator._pools[0].envs[0].unwrapped.ale
    simulator.reset()
    for _ in range(60):
        if not simulator.step(np.array([0])).valid[0]:
            starts.add(ale.getEpisodeFrameNumber())
    assert len(starts) > 2
    assert all(1 <= start <= 30 for start in starts)


def test_without_ale_py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"ppo1-lightning\[atari\].*EnvPool's 'Pong-v5'"):
        spaces(EnvironmentSpec("ALE/Pong-v5"))
