# pyright: reportMissingImports=false
"""CleanRL's PPO: ``python -m benchmarks.peers.cleanrl CASE`` in its virtual environment.

Its scripts as they are in its last package (1.2.0), with the sizes of the case as arguments.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from contextlib import chdir, suppress
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch.utils import tensorboard

from benchmarks.measure import Measurement, emit, parse_case

CASES = {
    "halfcheetah_8x256": ["ppo_continuous_action", "--num-envs=8", "--num-steps=256"],
    "halfcheetah_1x2048": ["ppo_continuous_action"],
    "cartpole": [
        "ppo",
        "--num-envs=8",
        "--num-steps=32",
        "--num-minibatches=1",
        "--update-epochs=20",
    ],
    "atari": ["ppo_atari_envpool", "--env-id=Pong-v5", "--num-envs=8"],
    "lstm_atari": ["ppo_atari_lstm", "--env-id=Pong-v5", "--num-envs=8"],
}
"""A script and its arguments; of the defaults, only what other systems do differently."""


class Enough(SystemExit):
    """Ends the script."""


def watch(measurement: Measurement) -> None:
    """Hook into the row that a script writes at the end of an iteration."""

    class Clock(tensorboard.SummaryWriter):
        def add_scalar(self, *row: Any, **options: Any) -> None:
            super().add_scalar(*row, **options)
            tag, _, global_step = row
            if tag == "charts/SPS" and measurement.tick(global_step):
                raise Enough

    tensorboard.SummaryWriter = Clock


class Games:
    """EnvPool's single frames in the place of the script's games, one after the other in Python.

    Those want packages that Python 3.11 has not, and would be slower.
    """

    def __init__(self, each: list[Any]) -> None:
        import envpool

        options = {"stack_num": 1, "episodic_life": True, "reward_clip": True}
        self._games = envpool.make("Pong-v5", env_type="gym", num_envs=len(each), **options)
        self.single_action_space = self._games.action_space
        self.single_observation_space = self._games.observation_space

    def reset(self) -> Any:
        return self._games.reset()

    def step(self, actions: Any) -> tuple[Any, Any, Any, list[Any]]:
        return *self._games.step(actions)[:3], []

    def close(self) -> None:
        self._games.close()


def play_games_by_envpool() -> None:
    """Let a script that makes its games by Gym and SB3's wrappers have `Games`."""
    import gym

    gym.vector.SyncVectorEnv = Games
    names = "ClipRewardEnv", "EpisodicLifeEnv", "FireResetEnv", "MaxAndSkipEnv", "NoopResetEnv"
    for name in ("stable_baselines3", "stable_baselines3.common"):
        sys.modules[name] = ModuleType(name)
    wrappers = ModuleType("stable_baselines3.common.atari_wrappers")
    vars(wrappers).update(dict.fromkeys(names))
    sys.modules[wrappers.__name__] = wrappers


def script_file(name: str) -> str:
    """Return where a script is installed, without importing the package."""
    spec = find_spec("cleanrl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return f"{spec.submodule_search_locations[0]}/{name}.py"


def main() -> None:
    parser = parse_case(list(CASES), __doc__, by_steps=True)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    arguments = parser.parse_args()
    # One thread is faster for the MLPs; the CNN keeps PyTorch's default.
    threads = arguments.threads or (None if "atari" in arguments.case else 1)
    if threads:
        torch.set_num_threads(threads)
    measurement = Measurement(arguments.seconds, steps=arguments.steps)
    watch(measurement)
    script, *options = CASES[arguments.case]
    if script == "ppo_atari_lstm":
        play_games_by_envpool()
    with tempfile.TemporaryDirectory() as folder, chdir(folder), suppress(Enough):
        sys.argv[1:] = [*options, "--cuda=false", "--total-timesteps=1000000000"]
        runpy.run_path(script_file(script), run_name="__main__")
    versions = {name: metadata.version(name) for name in ("torch", "cleanrl")}
    emit(measurement.result(torch_threads=torch.get_num_threads(), versions=versions))


if __name__ == "__main__":
    main()
