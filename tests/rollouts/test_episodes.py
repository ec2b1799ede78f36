"""Episode returns and lengths against a loop over every step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ppo1_lightning.rollouts.episodes import WINDOW, EpisodeStatistics, EpisodeTracker


def test_returns_and_lengths_equal_a_loop():
    """Episodes end anywhere, also in a rollout's first and last row, and go on over rollouts."""
    stream = np.random.default_rng(0)
    tracker = EpisodeTracker(4)
    under_way = np.zeros((4, 2))  # return, length
    lost = np.zeros(4, bool)  # whether the row before ended something
    finished = 0
    for _ in range(6):
        rewards = stream.standard_normal((15, 4)).astype(np.float32)
        ends = stream.random((15, 4)) < 0.3  # of an episode, or only of a life
        game_over = ends & (stream.random((15, 4)) < 0.7)
        valid = np.ones((15, 4), bool)
        expected = np.full((2, 15, 4), np.nan)
        for t in range(15):
            valid[t] = ~lost
            ends[t] &= valid[t]
            game_over[t] &= valid[t]
            lost = ends[t]
            for env in np.flatnonzero(valid[t]):
                under_way[env] += rewards[t, env], 1
                if game_over[t, env]:
                    expected[:, t, env] = under_way[env]
                    under_way[env] = 0
                    finished += 1
        returns, lengths = tracker.update(rewards, valid, game_over)
        np.testing.assert_allclose(returns, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(lengths, expected[1])
    assert finished > 50


def ended(*episodes: tuple[float, float]) -> Any:
    """Return ``returns`` and ``lengths [T, 1]`` with one episode a row."""
    pairs = torch.tensor(episodes).reshape(-1, 1, 2)
    return pairs[..., 0], pairs[..., 1]


def test_means_are_over_the_last_episodes():
    statistics = EpisodeStatistics()
    assert math.isnan(statistics.return_mean)
    assert math.isnan(statistics.length_mean)
    assert statistics.update(*ended((1.0, 10.0), (math.nan, math.nan), (3.0, 30.0))) == 2
    assert (statistics.return_mean, statistics.length_mean) == (2.0, 20.0)
    statistics.update(*ended(*[(5.0, 50.0)] * (WINDOW - 1)))
    assert statistics.return_mean == (3 + 5 * (WINDOW - 1)) / WINDOW  # the first fell out


def test_state_is_plain_and_restores_the_means():
    statistics, again = EpisodeStatistics(), EpisodeStatistics()
    statistics.update(*ended((1.0, 10.0), (3.0, 30.0)))
    again.update(*ended((100.0, 1.0)))
    assert statistics.state_dict() == [[1.0, 10.0], [3.0, 30.0]]
    again.load_state_dict(statistics.state_dict())
    assert (again.return_mean, again.length_mean) == (2.0, 20.0)
