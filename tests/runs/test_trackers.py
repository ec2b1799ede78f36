"""Loggers for experiment trackers, the real ones, offline: what they hold after two runs."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from ppo1_lightning.commands import config as cli

OFFLINE = {
    "wandb": ["logger.wandb.offline=true"],
    "mlflow": ["logger.mlflow.tracking_uri=sqlite:///{folder}/mlflow.db"],
    "comet": ["logger.comet.online=false"],
}


class _Logs(LightningModule):
    """Logs a row per batch, as PPO does."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._start = start
        self.save_hyperparameters({"only_in_the_module": 1})

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for logger in self.loggers:
            step = self._start + 100 * (batch_idx + 1)
            logger.log_metrics({"loss/value": float(batch), "nothing": float("nan")}, step=step)


@pytest.fixture(autouse=True)
def _quiet_and_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("COMET_LOGGING_CONSOLE", "error")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("COMET_ERROR_TRACKING_ENABLE", "false")


def make_logger(name: str, folder: Path) -> Logger:
    """Make a logger as ``logger=name`` does, for the run in ``folder``."""
    cli.register_resolvers()
    words = [word.format(folder=folder.parent) for word in OFFLINE[name]]
    words += [f"logger={name}", f"trainer.default_root_dir={folder}", "env=pong", "seed=3"]
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        config = hydra.compose("train", words)
    assert list(config.logger) == ["csv", name]  # for the report
    return instantiate(config.logger[name], _convert_="all")


def train_twice(name: str, folder: Path) -> None:
    """Train a run in ``folder``, and go on with it under a changed configuration."""
    (folder / ".hydra").mkdir(parents=True)
    for part in (0, 1):
        config = {
            "seed": 3,
            "env": {"id": "Pong-v5"},
            "total_steps": 200 + 200 * part,
            f"new{part}": 1,
        }
        OmegaConf.save(OmegaConf.create(config), folder / ".hydra" / "resolved.yaml")
        Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=make_logger(name, folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(_Logs(200 * part), DataLoader([1.5, 2.5]))  # pyright: ignore[reportArgumentType]


def test_wandb(tmp_path: Path) -> None:
    for run in ("a", "b"):  # two jobs of a sweep, in one process
        train_twice("wandb", tmp_path / run)
    assert len({(tmp_path / run / "wandb.id").read_text() for run in ("a", "b")}) == 2
    run_id = (tmp_path / "a" / "wandb.id").read_text().strip()
    files = sorted(tmp_path.glob("a/wandb/offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    records = [list(_wandb_records(file)) for file in files]
    rows = [r.history for part in records for r in part if r.WhichOneof("record_type") == "history"]
    tables = [
        {item.key or item.nested_key[0]: item.value_json for item in row.item} for row in rows
    ]
    assert [float(row["loss/value"]) for row in tables] == [1.5, 2.5, 1.5, 2.5]
    assert [int(row["trainer/global_step"]) for row in tables] == [100, 200, 300, 400]
    configs = [update.key for part in records for r in part for update in r.config.update]
    assert {"seed", "env", "total_steps", "new0", "new1"} <= set(configs)


def _wandb_records(file: Path) -> Iterator[Any]:
    """Read W&B's file: records in a log of blocks as LevelDB's, after a header of seven bytes."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no header fits into the rest of a block
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = messages.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.mark.slow
def test_mlflow(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    for run in ("a", "b"):
        train_twice("mlflow", tmp_path / run)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "train")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in runs} == {
        (tmp_path / run / "mlflow.id").read_text().strip() for run in ("a", "b")
    }
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "loss/value")
        assert [(m.step, m.value) for m in history] == [
            (100, 1.5),
            (200, 2.5),
            (300, 1.5),
            (400, 2.5),
        ]
        expected = {
            "seed": "3",
            "env.id": "Pong-v5",
            "total_steps": "200",
            "new0": "1",
            "new1": "1",
        }
        assert run.data.params == expected  # a parameter of MLflow's never changes
        assert (run.info.status, run.info.run_name) == ("FINISHED", "Pong-v5-3")


def test_comet(tmp_path: Path) -> None:
    train_twice("comet", tmp_path / "a")
    key = (tmp_path / "a" / "comet.id").read_text().strip()
    archives = sorted(
        (tmp_path / "a" / "comet").glob("*.zip"), key=lambda file: file.stat().st_mtime_ns
    )
    assert [file.name.partition("-")[0] for file in archives] == [key] * 2
    values, parameters = [], set()
    for archive in archives:
        with zipfile.ZipFile(archive) as content:
            lines = content.read("messages.json").decode().splitlines()
        for payload in (json.loads(line)["payload"] for line in lines):
            metric = payload.get("metric") or {}
            if metric.get("metricName") == "loss/value":
                values.append((metric["step"], float(metric["metricValue"])))
            parameters |= {(payload.get("param") or {}).get("paramName")}
    assert values == [(100, 1.5), (200, 2.5), (300, 1.5), (400, 2.5)]
    assert {"seed", "env|id", "total_steps"} <= parameters


@pytest.mark.parametrize("name", OFFLINE)
def test_other_ranks_write_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")  # Comet's logger asks this
    logger = make_logger(name, tmp_path / "run")
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"a": 1.0}, step=1)
    logger.finalize("success")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("comet", "comet_ml")]
)
def test_missing_package_is_told_in_one_line(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InstantiationException) as caught:
        make_logger(name, tmp_path)
    expected = f"logger={name} needs the package {package}: pip install 'ppo1-lightning[{name}]'"
    assert cli.explain(caught.value) == expected
    assert not list(tmp_path.iterdir())
