"""An environment whose every number is known beforehand: a reference for resets, flags and GAE.

Importing this module registers ``Scripted-v0``; the id ``"scripted_env:Scripted-v0"`` imports it
by itself. Nothing depends on the action. With ``t`` steps done of episode number ``episode``::

    observation(seed, episode, t)   float32 [3]: episode, t, and a hash of all three in [0, 1)
    reward(seed, episode, t)        for the step from t to t + 1, in [-1, 1)
    script(seed, episode)           (length, ending): the step to t = length ends the episode, with
                                    "terminated", "truncated", or "both" flags

By default lengths are 1 to 8 and endings terminated or truncated, both from a hash; ``script`` as
an argument of the environment gives the pairs instead, and starts again after the last.

`expected_rows` writes out what a simulator with NEXT_STEP resets must return.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

Script = Sequence[tuple[int, str]]


def unit_hash(*key: int) -> float:
    """Return a number in [0, 1) that float32 holds exactly."""
    return zlib.crc32("/".join(map(str, key)).encode()) // 2**8 / 2**24


def observation(seed: int, episode: int, t: int) -> NDArray[np.float32]:
    return np.array([episode, t, unit_hash(seed, episode, t)], np.float32)


def reward(seed: int, episode: int, t: int) -> float:
    return 2 * unit_hash(seed, episode, t, 1) - 1


def script(seed: int, episode: int, given: Script | None = None) -> tuple[int, str]:
    """Return how long an episode is, and how it ends."""
    if given is not None:
        return given[episode % len(given)]
    length = 1 + int(8 * unit_hash(seed, episode, 0, 2))
    return length, "terminated" if unit_hash(seed, episode, 0, 3) < 0.5 else "truncated"


class ScriptedEnv(gymnasium.Env[NDArray[np.float32], np.int64]):
    """See the module's docstring."""

    def __init__(self, script: Script | None = None, num_actions: int = 3) -> None:
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = Discrete(num_actions)
        self._given = script
        self._seed, self._episode, self._t = 0, -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Start the next episode, or with ``seed`` the first one of that seed."""
        if seed is not None:
            self._seed, self._episode = seed, -1
        self._episode, self._t = self._episode + 1, 0
        return observation(self._seed, self._episode, 0), {}

    def step(self, action: np.int64) -> Any:
        got = reward(self._seed, self._episode, self._t)
        self._t += 1
        length, ending = script(self._seed, self._episode, self._given)
        over = self._t == length
        flags = over and ending != "truncated", over and ending != "terminated"
        return observation(self._seed, self._episode, self._t), got, *flags, {}


class Row(NamedTuple):
    """What one environment contributes to one step."""

    observation: NDArray[np.float32]  # [3], after the step
    reward: float
    terminated: bool
    truncated: bool
    valid: bool


def expected_rows(seed: int, given: Script | None = None) -> Iterator[Row]:
    """Yield the rows after the first reset, for ever: each episode's, then its reset's."""
    episode = 0
    while True:
        length, ending = script(seed, episode, given)
        for t in range(length):
            terminated = t + 1 == length and ending != "truncated"
            truncated = t + 1 == length and ending == "truncated"  # "both" is terminated
            yield Row(
                observation(seed, episode, t + 1),
                reward(seed, episode, t),
                terminated,
                truncated,
                True,
            )
        episode += 1
        yield Row(observation(seed, episode, 0), 0.0, False, False, False)


gymnasium.register("Scripted-v0", entry_point="scripted_env:ScriptedEnv")
