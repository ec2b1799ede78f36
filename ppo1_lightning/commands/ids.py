"""Ids of environments as words of ``env=``: a preset for each that has none of its own."""

from __future__ import annotations

from functools import cache

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from ppo1_lightning import simulators
from ppo1_lightning.errors import RunError
from ppo1_lightning.policies.cnn import images_of
from ppo1_lightning.simulators.base import EnvironmentSpec
from ppo1_lightning.simulators.registered import is_atari

_GROUP = "env/"


def register() -> None:
    """Let Hydra find ids where it finds presets, behind these."""
    Plugins.instance().register(IdSource)
    Plugins.instance().register(IdSearchPath)


class IdSearchPath(SearchPathPlugin):
    """Asks `IdSource` after all others."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ppo1_lightning", "ids://")


class IdSource(ConfigSource):
    """Presets that are made when they are asked for: ``env=MiniGrid-Empty-5x5-v0``."""

    @staticmethod
    def scheme() -> str:
        return "ids"

    def load_config(self, config_path: str) -> ConfigResult:
        env_id = config_path.removeprefix(_GROUP)
        family = family_of(env_id)
        defaults: list[object] = [f"/env/{family}"]
        if family in ("envpool", "gymnasium") and observes_images(env_id):
            defaults.append({"override /algo": "images"})
        config = {"defaults": [*defaults, "_self_"], "env": {"id": env_id}}
        return ConfigResult(
            config=OmegaConf.create(config),
            path=self.full_path(),
            provider=self.provider,
            header={"package": "_global_"},
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        env_id = config_path.removeprefix(_GROUP)
        if not config_path.startswith(_GROUP):
            return False
        return ":" in env_id or is_atari(env_id) or env_id in simulators.ids()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []  # there are too many for Hydra's help


def family_of(env_id: str) -> str:
    """Return the preset of ``conf/env`` that trains ``env_id``, or its kind."""
    if env_id in (own := _own_presets()):
        return own[env_id]
    kind = "envpool" if simulators.is_envpool_s(env_id) else "gymnasium"
    return simulators.family(env_id) or kind


def observes_images(env_id: str) -> bool:
    """Whether there is an image among what a policy would see."""
    try:
        observation_space, _ = simulators.spaces(EnvironmentSpec(env_id))
    except RunError:  # it may need options, which the run has; if not, the run tells it
        return False
    return bool(images_of(observation_space))


@cache
def _own_presets() -> dict[str, str]:
    """Return the presets that name an environment, by its id."""
    from ppo1_lightning.commands.config import config_directory

    presets = {}
    for file in sorted((config_directory() / "env").glob("*.yaml")):
        env_id = OmegaConf.select(OmegaConf.load(file), "env.id")
        if env_id is not None:
            presets[env_id] = file.stem
    return presets
