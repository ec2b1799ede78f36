"""From a config's nodes to the objects that they describe, with mistakes told in one line."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.errors import ConfigurationError, one_line


def make(config: DictConfig, key: str, kind: Any, **arguments: Any) -> Any:
    """Return what the node ``key`` describes, which has to be a ``kind``.

    What it names is imported and called: only for configs that the user has chosen.

    Raises:
        ConfigurationError: it describes nothing, or something else.
    """
    node = OmegaConf.select(config, key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        hint = "; null leaves it out" if "." in key else ""
        raise ConfigurationError(f"{key}={node} is not a config with a _target_{hint}")
    try:
        made = instantiate(node, **arguments, _convert_="all")
    except TypeError as error:  # Hydra's own; those of what it calls come as its exceptions
        raise ConfigurationError(f"{key}: {one_line(error)}") from error
    if not isinstance(made, kind):
        raise ConfigurationError(
            f"{key}._target_={node._target_} makes a {type(made).__name__}, "
            f"expected a {kind.__name__}"
        )
    return made
