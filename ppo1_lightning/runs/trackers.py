"""What a run adds to Lightning's loggers: its configuration, ids to go on with, an end.

A tracker (Weights & Biases, MLflow, Comet) gives a run an id; it is kept in the run's folder, and
`conf/logger/` reads it from there, so that a resumed run goes on in the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.errors import ConfigurationError, one_line
from ppo1_lightning.runs.instantiation import make

_FILES = {WandbLogger: "wandb.id", MLFlowLogger: "mlflow.id", CometLogger: "comet.id"}


def kept(file: str) -> str | None:
    """Return the id in a file of the run's folder, None where it has none yet (a resolver)."""
    return Path(file).read_text(encoding="utf-8")[:100].strip() if Path(file).is_file() else None


@contextmanager
def attached(
    trainer: Trainer, module: LightningModule, config: DictConfig, keys: Sequence[str]
) -> Iterator[None]:
    """Give the trainer the loggers at ``keys``, tell them the configuration, and end their runs.

    Only for as long as a run trains: Comet's opens an experiment when it is made, which a process
    that only launches others must not, and the next job of a sweep is a run of its own.

    Raises:
        ConfigurationError: a package is missing, or a tracker cannot be reached.
    """
    if not config.trainer.get("fast_dev_run"):  # which logs nothing
        trainer.loggers = [_make(config, key) for key in keys]
    module._log_hyperparams = False  # they are part of the configuration
    loggers = trainer.loggers if trainer.is_global_zero else []
    values: Any = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        _begin(logger, values, Path(config.trainer.default_root_dir))
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(failed))
            elif isinstance(logger, CometLogger):
                logger.experiment.end()


def _make(config: DictConfig, key: str) -> Logger:
    try:
        return make(config, key, Logger)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        extra = key.rpartition(".")[2]
        told = ConfigurationError(
            f"{key} needs a package that is missing: pip install 'ppo1-lightning[{extra}]'"
        )
        told.on_all_ranks = True
        raise told from error


def _begin(logger: Logger, values: Mapping[str, Any], folder: Path) -> None:
    file = next((folder / f for kind, f in _FILES.items() if isinstance(logger, kind)), None)
    if file is None:
        logger.log_hyperparams(dict(values))
        return
    try:
        if not (isinstance(logger, MLFlowLogger) and file.exists()):  # it never changes a parameter
            logger.log_hyperparams(dict(values))
        file.write_text(f"{logger.version}\n", encoding="utf-8")
    except Exception as error:  # whatever a tracker raises that lacks a login, server or run
        problem = one_line(error)[:300].rstrip(".")
        raise ConfigurationError(
            f"logger={file.stem}: {problem}; docs/loggers.md: without an account"
        ) from error
