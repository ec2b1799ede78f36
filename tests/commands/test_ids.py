"""``env=ID``: an id is as good as a preset."""

from __future__ import annotations

import hydra
import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from ppo1_lightning.commands import ids
from ppo1_lightning.commands.config import config_directory, register_resolvers


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


def test_other_words_stay_unknown() -> None:
    with pytest.raises(MissingConfigException, match="env/Ponk-v5"):
        composed("env=Ponk-v5")
