# pyright: reportMissingImports=false
"""CleanRL's or LeanRL's Atari script as it is, on a GPU, with the EnvPool that is installed.

``python -m benchmarks.peers.atari_script --seconds=4 FILE --env-id=Pong-v5 --cudagraphs``, where
FILE is CleanRL's ``ppo_atari_envpool.py`` (1.2.0) or LeanRL's ``ppo_atari_envpool_torchcompile.py``
and what they import is there (gym 0.23.1; for LeanRL tensordict, torchrl, tyro, wandb).
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
import tempfile
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import envpool
import gym
import numpy as np
import torch
from torch.utils import tensorboard

from benchmarks.measure import Measurement, emit


class Enough(SystemExit):
    """Ends the script."""


class OldInterface(gym.Env):
    """EnvPool's environments as its version of 2022 was called through gym 0.23."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.action_space = gym.spaces.Discrete(int(pool.action_space.n))
        self.observation_space = gym.spaces.Box(0, 255, pool.observation_space.shape, np.uint8)

    def reset(self, **options: Any) -> Any:
        """Return the first observations."""
        return self._pool.reset()[0]

    def step(self, actions: Any) -> Any:
        """Return observations, rewards, ends of episodes and information."""
        observations, rewards, terminated, truncated, info = self._pool.step(actions)
        return observations, rewards, terminated | truncated, info

    def close(self) -> None:
        """Free the environments."""
        self._pool.close()


def watch(measurement: Measurement) -> None:
    """Hook into the row that either script writes of its speed."""

    def tick(global_step: int) -> None:
        if measurement.tick(global_step):
            raise Enough

    class Clock(tensorboard.SummaryWriter):
        def add_scalar(self, *row: Any, **options: Any) -> None:
            super().add_scalar(*row, **options)
            if row[0] == "charts/SPS":
                tick(row[2])

    tensorboard.SummaryWriter = Clock
    with suppress(ImportError):
        wandb: Any = importlib.import_module("wandb")
        wandb.init, wandb.log = lambda **_: None, lambda row, step: tick(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steady state, at least")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    arguments = parser.parse_args()
    file = arguments.file.resolve()
    with suppress(ImportError):
        importlib.import_module("setuptools")  # has the distutils that Python 3.12 left out
    measurement = Measurement(arguments.seconds)
    watch(measurement)
    make = envpool.make_gymnasium
    envpool.make = lambda env_id, env_type, **options: OldInterface(make(env_id, **options))
    with tempfile.TemporaryDirectory() as folder, chdir(folder), suppress(Enough):
        sys.argv[1:] = arguments.arguments
        runpy.run_path(str(file), run_name="__main__")
    emit(measurement.result(versions={"torch": torch.__version__, "envpool": envpool.__version__}))


if __name__ == "__main__":
    main()
