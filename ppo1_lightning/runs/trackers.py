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
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.errors import ConfigurationError, one_line
from ppo1_lightning.runs.instantiation import make

_IDS = {WandbLogger: "wandb.id", MLFlowLogger: "mlflow.id", CometLogger: "comet.id"}


def kept(file: str) -> str | None:
    """Return the id in a file of the run's folder, None where it has none yet (a resolver)."""
    path = Path(file)
    return (path.read_text(encoding="utf-8")[:100].strip() or None) if path.is_file() else None


@contextmanager
def attached(
    trainer: Trainer, module: LightningModule, config: DictConfig, keys: Sequence[str]
) -> Iterator[None]:
    """Give the trainer the loggers at ``keys``, tell them the configuration, and end their runs.

    Made on rank zero only, and for as long as a run trains: Comet's opens an experiment at once,
    MLflow's a database, and the next job of a sweep is a run of its own.

    Raises:
        ConfigurationError: a package is missing, or a tracker cannot be reached.
    """
    speaks = trainer.is_global_zero and not config.trainer.get("fast_dev_run")
    trainer.loggers = [_make(config, key) if speaks else DummyLogger() for key in keys]
    module._log_hyperparams = False  # they are part of the configuration
    values: Any = OmegaConf.to_container(config, resolve=True)
    for logger in trainer.loggers:
        _begin(logger, values, Path(config.trainer.default_root_dir))
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(failed))
            elif isinstance(logger, CometLogger):
                logger.experiment.end()


def _make(config: DictConfig, key: str) -> Logger:
    try:
        return make(config, key, Logger)
    except InstantiationException as error:
        extra = key.rpartition(".")[2]
        if (
            not isinstance(error.__cause__, ModuleNotFoundError)
            or f"{extra}.id" not in _IDS.values()
        ):
            raise
        raise ConfigurationError(
            f"{key} needs a package that is missing: pip install 'ppo1-lightning[{extra}]'"
        ) from error


def _begin(logger: Logger, values: Mapping[str, Any], folder: Path) -> None:
    file = next((folder / f for kind, f in _IDS.items() if isinstance(logger, kind)), None)
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
