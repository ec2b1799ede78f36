"""Ids of environments as words of ``env=``: a preset for each that has none of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from gymnasium import Space
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

_LIBRARIES = ("envpool", "gymnasium")
"""Presets of all that has no preset of its kind."""


def register() -> None:
    """Let Hydra find ids where it finds presets, behind these."""
    Plugins.instance().register(IdSource)
    Plugins.instance().register(IdSearchPath)


def joined(words: Sequence[str]) -> list[str]:
    """Return a command line with ``env=gymnasium env.id=X`` as one word, ``env=gymnasium/X``.

    So that there, too, `IdSource` chooses what is trained with, unless ``algo=`` is given.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    library, env_ids = given.get("env"), given.get("env.id", "").split(",")
    is_plain = all(re.fullmatch(r"[\w:/.-]+", env_id) for env_id in env_ids)
    if library not in _LIBRARIES or not is_plain or "algo" in given:
        return [*words]
    word_of = {f"env={library}": f"env={','.join(f'{library}/{env_id}' for env_id in env_ids)}"}
    # In its place: Hydra wants options such as ``-m`` before or behind all overrides.
    return [word_of.get(word, word) for word in words if not word.startswith("env.id=")]


class IdSearchPath(SearchPathPlugin):
    """Asks `IdSource` after all others."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ppo1_lightning", "ids://")


class IdSource(ConfigSource):
    """Presets that are made when they are asked for: ``env=MiniGrid-Empty-5x5-v0``.

    ``env=gymnasium/CartPole-v1`` says which library's it is.
    """

    @staticmethod
    def scheme() -> str:
        return "ids"

    def load_config(self, config_path: str) -> ConfigResult:
        word = config_path.removeprefix(_GROUP)
        library, _, rest = word.partition("/")
        family, env_id = (library, rest) if library in _LIBRARIES else (family_of(word), word)
        defaults: list[object] = [f"/env/{family}"]
        if family in _LIBRARIES and (algorithm := _algorithm_of(EnvironmentSpec(env_id, family))):
            defaults.append({"override /algo": algorithm})
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
        if env_id.partition("/")[0] in _LIBRARIES or ":" in env_id or is_atari(env_id):
            return True  # whether there is one shows when it is made
        return env_id in simulators.ids()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []  # there are too many for Hydra's help


def family_of(env_id: str) -> str:
    """Return the preset of ``conf/env`` that trains ``env_id``, or its kind."""
    if env_id in (own := _own_presets()):
        return own[env_id]
    kind = "envpool" if simulators.is_envpool_s(env_id) else "gymnasium"
    return simulators.family(env_id) or kind


def algorithm_for(family: str, observation_space: Space[Any]) -> str | None:
    """Return the preset of ``conf/algo`` in the place of a family's own, None where that stays."""
    return "images" if family in _LIBRARIES and images_of(observation_space) else None


def _algorithm_of(spec: EnvironmentSpec) -> str | None:
    try:
        observation_space, _ = simulators.spaces(spec)
    except RunError:  # it may need options, which the run has; if not, the run tells it
        return None
    return algorithm_for(spec.backend, observation_space)


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
