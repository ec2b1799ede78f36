"""A trained policy from the folder of its run: what evaluation, recording and export start from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from ppo1_lightning import simulators
from ppo1_lightning.algorithms.entry import (
    check_same_run,
    entry_of,
)
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.algorithms.plain import read_checkpoint
from ppo1_lightning.errors import ConfigurationError, check_path
from ppo1_lightning.runs import resume
from ppo1_lightning.runs.instantiation import make
from ppo1_lightning.runs.untrusted import foreign_calls, read_config, refuse_foreign_calls
from ppo1_lightning.simulators import EnvironmentSpec

log = logging.getLogger("ppo1_lightning")

CONFIG = Path(".hydra/resolved.yaml")
"""Where a run keeps the config that it was trained with."""


@dataclass(frozen=True)
class TrainedRun:
    """A trained policy and all that it was trained with.

    Attributes:
        folder: of the run.
        config: of the run, resolved: read from the folder, never from a checkpoint.
        module: on the CPU, with the weights, normalisers and counters of the checkpoint, and in
            evaluation mode.
        environment: what it was trained on, with the same preprocessing.
        checkpoint_path: the file that the weights are from.
    """

    folder: Path
    config: DictConfig
    module: OnPolicyModule
    environment: EnvironmentSpec
    checkpoint_path: Path

    def output_stem(self, output: str | None, folder: str, endings: Sequence[str]) -> Path:
        """Return where to write files, without their ``endings``.

        Args:
            output: what the user asks for, with or without an ending; by default the name of the
                checkpoint and its steps, in ``folder`` of the run.

        Raises:
            ConfigurationError: it is a folder.
        """
        name = f"{self.checkpoint_path.stem}_{self.module.counters.env_steps}"
        if output is None:
            _check_inside(self.folder / folder, self.folder, "output=FILE")
            return self.folder / folder / name
        stem = check_path("output", "." if output == "" else output)
        if stem.is_dir():
            raise ConfigurationError(
                f"output={output} is a folder, expected the name of files: output={stem / name}"
            )
        return stem.with_suffix("") if stem.suffix[1:] in endings else stem


def load_run(
    run: str | Path | None = None, ckpt_path: str | Path | None = None, *, trust: bool = False
) -> TrainedRun:
    """Rebuild what was trained.

    A folder is data: of what its config names only this package's own classes, PyTorch's
    optimizers and Gymnasium's harmless wrappers are called. Checkpoints are plain data.

    Args:
        run: folder of the run; by default the one that ``ckpt_path`` lies in.
        ckpt_path: checkpoint; by default the run's ``last.ckpt``.
        trust: whether whatever else the config names is imported and called, too.

    Raises:
        ConfigurationError: neither is given, there is no such run or checkpoint, or they do not
            fit together.
    """
    ckpt_path = None if ckpt_path is None else check_path("ckpt_path", ckpt_path)
    folder = _folder_of_run(run, ckpt_path)
    config = read_config(folder / CONFIG, folder)
    if trust:
        for key, name in foreign_calls(config, folder).items():
            log.info("trusting %s: %s calls %s", folder, key, name)
    else:
        refuse_foreign_calls(config, folder)
    path = ckpt_path or _last_checkpoint(folder, config, trust)
    content = read_checkpoint(path)
    environment: EnvironmentSpec = make(config, "env", EnvironmentSpec)
    spaces = simulators.spaces(environment)
    module: OnPolicyModule = make(
        config,
        "algo",
        OnPolicyModule,
        policy=make(config, "policy", Callable),
        observation_space=spaces[0],
        action_space=spaces[1],
    )
    check_same_run(entry_of(content), {"environment": environment.id})  # the module does the rest
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return TrainedRun(folder, config, module.eval(), environment, path)


def _folder_of_run(run: str | Path | None, ckpt_path: Path | None) -> Path:
    if run is not None:
        folder = Path(str(run))
        if not folder.is_dir():
            raise ConfigurationError(f"run={run} is not a folder, expected that of a run")
        if not (folder / CONFIG).is_file():
            raise ConfigurationError(f"run={run} is not the folder of a run: no {CONFIG} in it")
        return folder
    if ckpt_path is None:
        raise ConfigurationError("no run is given, expected run=FOLDER or ckpt_path=FILE")
    # Its own folder's, of no other that it happens to lie below.
    for folder in list(ckpt_path.absolute().parents)[:2]:
        if (folder / CONFIG).is_file():
            return folder
    raise ConfigurationError(
        f"ckpt_path={ckpt_path} lies in no run's folder: add run=FOLDER, whose {CONFIG} says "
        "how it was trained"
    )


def _check_inside(path: Path, folder: Path, instead: str) -> None:
    """Refuse a path that a folder says, or a link in it, and that leads out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(f"{path} leads out of {folder}, expected {instead}")


def _last_checkpoint(folder: Path, config: DictConfig, trust: bool) -> Path:
    """Return the run's ``last.ckpt``, also where the folder was moved since."""
    checkpoints = resume.checkpoint_folder(config, folder)
    if checkpoints.is_relative_to(config.trainer.default_root_dir):
        checkpoints = folder / checkpoints.relative_to(config.trainer.default_root_dir)
    if not (checkpoints / "last.ckpt").is_file():
        raise ConfigurationError(
            f"run={folder} holds no checkpoint, expected {checkpoints}/last.ckpt"
        )
    if not trust:
        _check_inside(checkpoints / "last.ckpt", folder, "ckpt_path=FILE, or trust=true")
    return checkpoints / "last.ckpt"
