"""Where a run starts from: the beginning, a checkpoint of its own, or the weights of another run.

All of it is decided once, by the process that the user started and before it launches others: what
is found is written into the config, as ``ckpt_path`` and as the ``purge_step`` of the loggers.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ppo1_lightning.algorithms.entry import entry_of
from ppo1_lightning.algorithms.plain import read_checkpoint
from ppo1_lightning.algorithms.resumable import check_resumable
from ppo1_lightning.errors import ConfigurationError, check_choice, check_path
from ppo1_lightning.rollouts.budget import Budget, Counters
from ppo1_lightning.runs import files

log = logging.getLogger("ppo1_lightning")
_say = rank_zero_only(log.info)


def check(config: DictConfig) -> None:
    """Raise `ConfigurationError` where ``config`` asks for two starts at once, or for none."""
    check_choice("resume", config.get("resume"), (None, "auto"))
    run = config.get("run")
    if run is not None and not Path(str(run)).is_dir():
        raise ConfigurationError(f"run={run} is not a folder, expected that of a run to continue")
    for own, other in (
        ("ckpt_path", "resume"),
        ("ckpt_path", "run"),
        ("init_from", "ckpt_path"),
        ("init_from", "run"),
    ):
        if config.get(own) is not None and config.get(other) is not None:
            raise ConfigurationError(
                f"{own} and {other} each say where to start, expected one of them "
                "(docs/reliability.md)"
            )


def goes_on(config: DictConfig) -> bool:
    """Tell whether a folder that holds a run already is what ``config`` means."""
    return any(config.get(key) is not None for key in ("ckpt_path", "resume", "run"))


@rank_zero_only
def refuse_finished_run(folder: Path, config: DictConfig) -> None:
    """Raise `ConfigurationError` where a new run would overwrite the checkpoints of ``folder``."""
    if goes_on(config):
        return
    # Before Hydra has made the folder, the config cannot name one of its own choice.
    folders = (folder / "checkpoints", checkpoint_folder(config, folder))
    last = next((f / "last.ckpt" for f in folders if files.is_there(f / "last.ckpt")), None)
    if last is not None:
        raise ConfigurationError(
            f"hydra.run.dir={folder} holds a run already; continue it with resume=auto, "
            f"start from its weights with init_from={last}, or choose another folder"
        )


def settle(config: DictConfig, folder: Path) -> tuple[DictConfig, dict[str, Any] | None]:
    """Find the checkpoint to continue from; return the config that says so, and its content.

    Args:
        config: of the command line; it stays as it is.
        folder: of the run.

    Raises:
        ConfigurationError: the checkpoint that was asked for, or all there are, cannot be read.
    """
    check(config)
    settled = copy.deepcopy(config)
    path, content = config.ckpt_path, None
    if path is not None:
        content = _read(path)
    elif goes_on(config):
        path, content = find_checkpoint(checkpoint_folder(config, folder))
        if path is None and config.run is not None:
            raise ConfigurationError(f"run={config.run} holds no checkpoint to continue from")
    with open_dict(settled):
        settled.ckpt_path = None if path is None else str(Path(path).absolute())
        settled.resume = settled.run = None  # done
        if content is not None:
            settled.init_from = None  # the run has weights of its own by now
    if content is not None:
        env_steps = entry_of(content)["counters"]["env_steps"]
        _say("continuing from %s, %s steps", path, f"{env_steps:,}")
    elif config.resume is not None:
        env_steps = 0
        _say("no checkpoint in %s yet: starting from the beginning", folder)
    else:
        return settled, None
    for logger in (settled.get("logger") or {}).values():
        if isinstance(logger, DictConfig) and "purge_step" in logger:
            logger.purge_step = env_steps + 1
    return settled, content


def _read(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint that a run can go on from; otherwise raise."""
    content = read_checkpoint(path)
    entry_of(content)
    check_resumable(content)
    return content


def checkpoint_folder(config: DictConfig, folder: Path) -> Path:
    """Return where the run of ``folder`` keeps its checkpoints."""
    try:
        chosen = OmegaConf.select(config, "callbacks.checkpoint.dirpath")
    except OmegaConfBaseException:  # below a folder that Hydra has not made yet
        chosen = None
    return check_path("callbacks.checkpoint.dirpath", chosen or folder / "checkpoints")


def find_checkpoint(folder: Path) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the last good checkpoint in ``folder`` and its content, None where there is none.

    A damaged ``last.ckpt`` is set aside, with a warning, if ``previous.ckpt`` is good.

    Raises:
        ConfigurationError: there are checkpoints, but none that can be read.
        StorageError: the disk or a permission is in the way: what is there may be good.
    """
    existing = [p for p in (folder / "last.ckpt", folder / "previous.ckpt") if files.is_there(p)]
    errors: list[ConfigurationError] = []
    for path in existing:
        try:
            content = _read(path)
        except ConfigurationError as error:
            errors.append(error)
            continue
        for error in errors:
            _set_aside(existing[0], f"{error}; continuing from {path.name}")
        return path, content
    if errors:
        raise ConfigurationError(f"no checkpoint in {folder} can be read: {errors[0]}")
    return None, None


@rank_zero_only
def _set_aside(path: Path, reason: str) -> None:
    damaged = path.with_name(f"{path.name}.damaged")
    os.replace(path, damaged)
    log.warning("%s (the damaged file is now %s)", reason, damaged.name)


def is_finished(content: dict[str, Any], budget: Budget) -> bool:
    """Tell whether a checkpoint is the end of its run, as far as ``budget`` goes."""
    entry = entry_of(content)
    spent = budget.fraction_spent(Counters(**entry["counters"])) >= 1
    return spent and not entry.get("owes_evaluation", False)
