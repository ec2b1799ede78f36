"""``env=ID``: an id is as good as a preset."""

from __future__ import annotations

from typing import Any

import gymnasium
import hydra
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from ppo1_lightning.commands import ids
from ppo1_lightning.commands.config import config_directory, register_resolvers


class Seen(gymnasium.Env[Any, Any]):
    observation_space, action_space = Box(0, 255, (40, 40, 3), np.uint8), Discrete(2)


gymnasium.register("Seen-v0", Seen)  # type: ignore[arg-type]


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    ids.register()
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        return hydra.compose("train", [*overrides])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("env_id", "preset"),
    [
        ("CartPole-v1", ["env=cartpole"]),
        ("Breakout-v5", ["env=breakout"]),
        ("Assault-v5", ["env=atari"]),
        ("Pusher-v4", ["env=mujoco"]),
        ("WalkerWalk-v1", ["env=dm_control"]),
        ("MiniGrid-Empty-5x5-v0", ["env=minigrid"]),
        ("CoinrunEasy-v0", ["env=procgen"]),
        ("myoFingerReachFixed-v0", ["env=envpool"]),
        ("CarRacing-v3", ["env=envpool", "algo=images"]),
        ("phys2d/CartPole-v0", ["env=envpool"]),
        ("Jumanji/Maze-v0", ["env=envpool"]),
        ("scripted_env:Scripted-v0", ["env=gymnasium"]),
        ("ALE/Pong-v5", ["env=atari_gymnasium"]),
        ("ale_py:ALE/Pong-v5", ["env=atari_gymnasium"]),
    ],
)
def test_an_id_composes_to_what_its_preset_does(env_id: str, preset: list[str]) -> None:
    assert composed(f"env={env_id}") == composed(*preset, f"env.id={env_id}")


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["env=envpool", "env.id=MiniGrid-Empty-5x5-v0"], ["algo=images"]),
        (["seed=3", "env.id=CartPole-v1", "env=gymnasium"], []),
        (["env=gymnasium", "env.id=test_ids:Seen-v0"], ["algo=images"]),
        (["env=gymnasium", "env.id=test_ids:Seen-v0", "algo=classic"], []),
    ],
)
def test_a_library_and_an_id_choose_as_an_id_does(words: list[str], same: list[str]) -> None:
    assert composed(*ids.joined(words)) == composed(*words, *same)


def test_ids_of_a_sweep_choose_each() -> None:
    words = ["-m", "env=gymnasium", "env.id=CartPole-v1,test_ids:Seen-v0", "seed=1,2"]
    choice = "env=gymnasium/CartPole-v1,gymnasium/test_ids:Seen-v0"
    assert sorted(ids.joined(words)) == sorted(["-m", choice, "seed=1,2"])


@pytest.mark.parametrize("rest", [[], ["env.id="], ["env.id=${seed}"], ["env.id=[a]"]])
def test_what_is_no_id_is_left_to_who_makes_it(rest: list[str]) -> None:
    words = ["env=gymnasium", *rest]
    assert ids.joined(words) == words


def test_other_words_stay_unknown() -> None:
    with pytest.raises(MissingConfigException, match="env/Ponk-v5"):
        composed("env=Ponk-v5")


def test_options_stay_in_front_of_a_library_and_an_id() -> None:
    words = ["-m", "seed=1,2", "env=gymnasium", "trainer.devices=2", "env.id=A-v0,B-v0"]
    joined = ["-m", "seed=1,2", "env=gymnasium/A-v0,gymnasium/B-v0", "trainer.devices=2"]
    assert ids.joined(words) == joined
