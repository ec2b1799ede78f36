"""Environments that spoil one rank of a run: ``env=gymnasium env.id=launched_envs:Killed-v0``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Fine(gymnasium.Env[Any, Any]):
    """Two actions, three numbers to see, an episode every ten steps."""

    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps > 40:
            self.happen()
        return np.zeros(3, np.float32), float(action), self.steps % 10 == 0, False, {}

    def happen(self) -> None:
        """Do what the environment is for, in the second iteration of 32 steps."""


class Killed(Fine):
    """Its second rank is killed, as when memory runs out."""

    def happen(self) -> None:
        if os.environ["LOCAL_RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


class Crashing(Fine):
    """Its second rank has a bug."""

    def happen(self) -> None:
        if os.environ["LOCAL_RANK"] == "1":
            raise KeyError("a bug")


class Slow(Fine):
    """Each process leaves its number, and takes its time."""

    def happen(self) -> None:
        Path(f"pid_{os.environ['LOCAL_RANK']}").write_text(str(os.getpid()))
        time.sleep(0.01)


for _env in (Fine, Killed, Crashing, Slow):
    gymnasium.register(f"{_env.__name__}-v0", entry_point=cast(Any, _env))
