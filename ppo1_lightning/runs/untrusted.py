"""Reading from a run's folder, which may be a stranger's: data, bounded, from nowhere else.

Nothing here follows a link out of the folder, waits for a pipe, or reads more than it is meant to.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo1_lightning.errors import ConfigurationError, check_path, one_line

_LONG_NUMBER = re.compile(r"(?=.{100})[-+]?(0[xXoObB][0-9a-fA-F_]+|[0-9][0-9_:.]*)")
"""Of a hundred digits or more, as YAML 1.1 has them: also with another base, and in base 60."""

WRITTEN = (
    *(".hydra", "checkpoints", "config_tree.txt", "plan.txt", "train.log", "videos"),
    *("comet", "comet.id", "csv", "mlflow.id", "tensorboard", "wandb", "wandb.id"),  # loggers
    *("multirun.yaml", "study.db"),  # sweeps and searches
)
"""In its folder, what a run writes, or a sweep."""

CONFIG_BYTES = 2**20
"""Of a config, at most; ours have some thousand."""

WRAPPERS = {
    "AtariPreprocessing",
    "ClipAction",
    "ClipReward",
    "DelayObservation",
    "DtypeObservation",
    "FilterObservation",
    "FlattenObservation",
    "FrameStackObservation",
    "GrayscaleObservation",
    "MaxAndSkipObservation",
    "RecordEpisodeStatistics",
    "RescaleAction",
    "RescaleObservation",
    "ReshapeObservation",
    "ResizeObservation",
    "StickyAction",
    "TimeAwareObservation",
    "TimeLimit",
}
"""Of Gymnasium, those that only change what is observed, done or learned from."""

OURS = {
    "PPO",
    "TRPO",
    "MlpPolicy",
    "CnnPolicy",
    "auto_policy",
    "EnvironmentSpec",
    "TensorFlowAdam",
    "TensorFlowRMSprop",
    "ObserveOnly",
    "ActionMaskFromInfo",
    "ContinuedGame",
    "SignReward",
}
"""Of this package, what a config builds."""


def open_inside(path: Path, folder: Path, limit: int) -> IO[bytes]:
    """Open a regular file of a folder for reading.

    Raises:
        OSError: it cannot be opened, is no regular file, is larger than ``limit`` bytes, or lies
            outside of the folder because a link leads there.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(f"{path} leads out of {folder}")
    # Not blocking: a pipe would wait for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no file")
        if status.st_size > limit:
            raise OSError(f"{path} has {status.st_size:,} bytes, expected at most {limit:,}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_ways_out(folder: Path) -> None:
    """Look through what a run is about to write to in a folder.

    Raises:
        ConfigurationError: something there is a link that leads out of the folder, or neither a
            file nor a folder: a pipe would be waited for.
    """
    for path in (path for name in WRITTEN for path in _below(folder / name)):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # there is none, or another process is writing here
            continue
        if stat.S_ISLNK(mode):
            refuse_link_out(path, folder)
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ConfigurationError(f"{path} is no file, expected a run's own: move it away")


def refuse_link_out(link: Path, folder: Path) -> None:
    """Raise `ConfigurationError` where a link leads out of a folder."""
    if not Path(os.path.realpath(link)).is_relative_to(folder.resolve()):
        instead = ", or callbacks.checkpoint.dirpath=DIR" if link.name == "checkpoints" else ""
        raise ConfigurationError(
            f"{link} leads out of {folder}, expected a run's own files: move it away{instead}"
        )


def _below(path: Path) -> Iterator[Path]:
    """Yield a path and all that is below it; no link is followed."""
    yield path
    if not path.is_symlink():
        for place, folders, names in os.walk(path):
            yield from (Path(place, name) for name in (*folders, *names))


def read_yaml(path: Path, folder: Path) -> Any:
    """Return the plain content of a YAML file: interpolations stay text, see also `printable`.

    Raises:
        OSError: see `open_inside`.
        ValueError: it is no YAML, or has aliases, by which a few bytes can stand for gigabytes, or
            a number of a hundred digits, which no library expects.
    """
    with open_inside(path, folder, CONFIG_BYTES) as file:
        text = file.read().decode("utf-8")
    try:
        for event in yaml.parse(text):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has YAML aliases")
            unquoted = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
            if unquoted and _LONG_NUMBER.fullmatch(event.value):
                raise ValueError(f"it has a number of {len(event.value):,} digits")
        content = OmegaConf.create(text)
        return _printable(
            OmegaConf.to_container(content) if OmegaConf.is_config(content) else content
        )
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ValueError(one_line(error)) from error


def read_config(path: Path, folder: Path) -> DictConfig:
    """Return the config of a run, in which nothing is left to resolve.

    Raises:
        ConfigurationError: it cannot be read, is no config of a run, or has interpolations.
    """
    try:
        content = read_yaml(path, folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigurationError(f"{path} cannot be read: {reason}") from error
    parts = ("env", "algo", "policy", "trainer")
    if not (isinstance(content, dict) and all(isinstance(content.get(p), dict) for p in parts)):
        raise ConfigurationError(f"{path} is not the config of a training run")
    for key, value in _leaves(content):
        if isinstance(value, str) and "${" in value:
            raise ConfigurationError(
                f"{path}: {key}={value} is not resolved, expected a value: what a folder says is "
                "data, and no environment variable is looked up for it"
            )
    check_path(f"{path}: trainer.default_root_dir", content["trainer"].get("default_root_dir"))
    return OmegaConf.create(content)


def foreign_calls(config: DictConfig, folder: Path) -> dict[str, str]:
    """Return what building a run would call besides this package's own: key -> name.

    A module that ``env.id`` names is imported, as Gymnasium does it, from where Python finds it;
    one that comes with the folder is foreign.
    """
    found = {}
    for part in ("env", "algo", "policy"):
        content = OmegaConf.to_container(config[part])
        for key, value in _leaves(content, f"{part}."):
            if key.endswith("_target_") and not _is_known(str(value)):
                found[key] = str(value)
    module, colon, _ = str(config.env.get("id", "")).rpartition(":")
    if colon and _comes_with(module.partition(".")[0], folder):
        found["env.id"] = f"the module {module} in it"
    return found


def _comes_with(module: str, folder: Path) -> bool:
    """Tell whether a module would be imported from a folder, or is a package that it lies in."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    own, found = folder.resolve(), [Path(place).resolve() for place in places if place]
    return any(place.is_relative_to(own) or own.is_relative_to(place) for place in found)


def refuse_foreign_calls(config: DictConfig, folder: Path) -> None:
    """Raise `ConfigurationError` where a folder's config names what is not this package's."""
    if foreign := foreign_calls(config, folder):
        names = ", ".join(f"{name} ({key})" for key, name in list(foreign.items())[:3])
        more = ", ..." if len(foreign) > 3 else ""
        raise ConfigurationError(
            f"{folder}: its config calls {names}{more}, which is not this package's own; if you "
            "trust who made the folder: trust=true"
        )


def _is_known(target: str) -> bool:
    module, _, name = target.rpartition(".")
    package = module.partition(".")[0]
    if package == "ppo1_lightning":
        return name in OURS
    if module in ("torch.optim", f"torch.optim.{name.lower()}"):
        kind = getattr(torch.optim, name, None)
        return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    return module == "gymnasium.wrappers" and name in WRAPPERS


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value below, by its dotted key."""
    if isinstance(content, Mapping | list):
        pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in pairs:
            yield from _leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), content


_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return text in which control characters, such as a terminal's escape codes, are written out.

    So are characters that turn or hide others, and bytes of a file's name that are no text. Line
    breaks and tabs stay.
    """
    return _CONTROL.sub(lambda m: m[0] if m[0] in "\n\t" else repr(m[0])[1:-1], text)


def _printable(content: Any) -> Any:
    """Return YAML's content with every text in it `printable`: whatever shows it need not care."""
    if isinstance(content, dict):
        return {_printable(key): _printable(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_printable(value) for value in content]
    return printable(content) if isinstance(content, str) else content
