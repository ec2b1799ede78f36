"""Lightning's loggers for experiment trackers, made fit for resumed runs and for sweeps.

Each keeps the tracker's id of the run in the run's folder, so that a resumed run goes on in the
same place; sends the run's whole configuration; and ends the tracker's run with the training, so
that the next job of a sweep gets one of its own. Only rank zero speaks to a tracker.
"""

from __future__ import annotations

import importlib
import os
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CometLogger as LightningCometLogger
from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ppo1_lightning.errors import ConfigurationError, one_line


class WandbLogger(LightningWandbLogger):
    """Weights & Biases, in ``save_dir/wandb``.

    Args:
        save_dir: folder of the run.
        **options: of Lightning's logger and of ``wandb.init``: ``project``, ``offline``...

    Raises:
        ConfigurationError: the package is missing or, when the run starts, nobody is logged in.
    """

    def __init__(self, save_dir: str | Path, **options: Any) -> None:
        _require("wandb", extra="wandb")
        super().__init__(save_dir=save_dir, id=_kept_id(save_dir, "wandb"), **options)
        self._wandb_init.pop("anonymous", None)  # newer versions warn of it, whatever it is
        self._folder = Path(save_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``."""
        import wandb

        try:
            return super().experiment
        except wandb.Error as error:
            raise ConfigurationError(
                f"logger=wandb: {one_line(error)} Without an account: logger.wandb.offline=true"
            ) from error

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:  # type: ignore[override]
        """Send the run's configuration, or ``params`` where the folder has none."""
        super().log_hyperparams(_configuration(self._folder, params))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run of W&B; what is logged later goes on with it."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None


class MLFlowLogger(LightningMLFlowLogger):
    """MLflow: a server, a database such as ``sqlite:///mlflow.db``, or a folder.

    Args:
        save_dir: folder of the run.
        tracking_uri: where MLflow keeps its runs.
        **options: of Lightning's logger: ``experiment_name``, ``run_name``, ``tags``...

    Raises:
        ConfigurationError: the package is missing or, when the run starts, the store cannot be
            reached or does not know the run that is to go on.
    """

    def __init__(self, save_dir: str | Path, tracking_uri: str, **options: Any) -> None:
        _require("mlflow", extra="mlflow")
        if not _is_rank_zero():
            tracking_uri = "http://localhost"  # never asked; a client of a database would make it
        super().__init__(tracking_uri=tracking_uri, run_id=_read_id(save_dir, "mlflow"), **options)
        self._folder = Path(save_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``MlflowClient``."""
        from mlflow.exceptions import MlflowException

        if self._initialized:
            return super().experiment
        try:
            client = super().experiment
        except MlflowException as error:
            raise ConfigurationError(
                f"logger=mlflow with {self._tracking_uri}: {one_line(error)}"
            ) from error
        _write_id(self._folder, "mlflow", str(self._run_id))
        return client

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:  # type: ignore[override]
        """Send the run's configuration, or ``params`` where the folder has none.

        MLflow never changes a parameter: those that a resumed run has already stay as they are.
        """
        known = self.experiment.get_run(self.run_id).data.params
        flat = _flat(_configuration(self._folder, params))
        super().log_hyperparams({name: v for name, v in flat.items() if name not in known})


class CometLogger(LightningCometLogger):
    """Comet: its service, or with ``online=False`` an archive in ``save_dir/comet``.

    Args:
        save_dir: folder of the run.
        **options: of Lightning's logger: ``project``, ``workspace``, ``name``, ``online``...

    Raises:
        ConfigurationError: the package is missing or, with the first row, the service is out of
            reach.
    """

    _is_made = False

    def __init__(self, save_dir: str | Path, **options: Any) -> None:
        _require("comet_ml", extra="comet")
        options["offline_directory"] = os.path.join(save_dir, "comet")
        super().__init__(experiment_key=_kept_id(save_dir, "comet"), **options)
        import comet_ml

        # Lightning's own switches off what is only offline
        self._comet_config = comet_ml.ExperimentConfig(**self._kwargs)
        self._folder = Path(save_dir)
        self._is_made = True

    def _create_experiment(self) -> None:
        """Create it with the first row, not with the logger: its process may only launch others."""
        if self._is_made:
            self._folder.joinpath("comet").mkdir(parents=True, exist_ok=True)
            try:
                super()._create_experiment()
            except OSError as error:  # whatever keeps its service out of reach
                raise ConfigurationError(
                    f"logger.comet: {one_line(error)[:200]}; without the service: "
                    "logger.comet.online=false"
                ) from error

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:  # type: ignore[override]
        """Send the run's configuration, or ``params`` where the folder has none."""
        super().log_hyperparams(_configuration(self._folder, params))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the experiment; what is logged later goes on with it."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.end()
            self._experiment = None


def _require(package: str, *, extra: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigurationError(
            f"logger={extra} needs the package {package}: pip install 'ppo1-lightning[{extra}]'"
        ) from error


def _kept_id(folder: str | Path, tracker: str) -> str:
    """Return the run's id at a tracker, a new one for a new run."""
    found = _read_id(folder, tracker)
    return found or _write_id(folder, tracker, uuid.uuid4().hex)


def _read_id(folder: str | Path, tracker: str) -> str | None:
    file = Path(folder) / f"{tracker}.id"
    return (file.read_text(encoding="utf-8").strip() or None) if file.is_file() else None


def _write_id(folder: str | Path, tracker: str, run_id: str) -> str:
    if _is_rank_zero():
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{tracker}.id").write_text(f"{run_id}\n", encoding="utf-8")
    return run_id


def _is_rank_zero() -> bool:
    return not getattr(rank_zero_only, "rank", None)


def _configuration(folder: Path, params: Mapping[str, Any] | Namespace) -> dict[str, Any]:
    """Return the run's resolved configuration; ``params`` of a run that was not made by Hydra."""
    from omegaconf import OmegaConf

    file = folder / ".hydra" / "resolved.yaml"
    if file.is_file():
        return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]
    return vars(params) if isinstance(params, Namespace) else dict(params)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
