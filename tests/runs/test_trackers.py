"""Loggers for experiment trackers, the real ones, offline: what they hold after two runs."""

from __future__ import annotations

import importlib
import json
import re
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from ppo1_lightning.commands import config as cli
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.runs import trackers

pytestmark = pytest.mark.heavy

OFFLINE = {
    "wandb": ["logger.wandb.offline=true"],
    "mlflow": ["logger.mlflow.tracking_uri=sqlite:///{folder}/mlflow.db"],
    "comet": [],
}


class _Logs(LightningModule):
    """Logs a row per batch, as PPO does."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._start = start
        self.save_hyperparameters({"only_in_the_module": 1, "seed": -1})

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
    monkeypatch.setenv("COMET_START_ONLINE", "false")


def compose(name: str, folder: Path, *words: str) -> DictConfig:
    """Compose what ``logger=name`` makes of a run in ``folder``."""
    cli.register_resolvers()
    given = [word.format(folder=folder.parent) for word in OFFLINE[name]]
    given += [f"logger={name}", f"trainer.default_root_dir={folder}", "env=pong", "seed=3", *words]
    with hydra.initialize_config_dir(str(cli.config_directory()), version_base="1.3"):
        config = hydra.compose("train", given)
    assert list(config.logger) == ["csv", name]  # for the report
    return config


def train_twice(name: str, folder: Path) -> None:
    """Train a run in ``folder``, and go on with it under a changed configuration."""
    folder.mkdir()
    for part in (0, 1):
        config = compose(name, folder, f"total_steps={200 + 200 * part}", f"+new{part}=1")
        module = _Logs(200 * part)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with trackers.attached(trainer, module, config, [f"logger.{name}"]):
            trainer.fit(module, DataLoader([1.5, 2.5]))  # pyright: ignore[reportArgumentType]


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
    configs = [
        (update.key, update.value_json)
        for part in records
        for r in part
        for update in r.config.update
    ]
    names = {name for name, value in configs}
    assert {"env", "new0", "new1"} <= names
    assert "only_in_the_module" not in names
    assert [value for name, value in configs if name == "total_steps"][-1] == "400"
    assert {value for name, value in configs if name == "seed"} == {"3"}
    exits = [r.exit.exit_code for part in records for r in part if r.HasField("exit")]
    assert exits == [0, 0]


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
        expected = {"seed": "3", "env/id": "Pong-v5", "total_steps": "200", "new0": "1"}
        assert expected.items() <= run.data.params.items()  # a parameter of MLflow's never changes
        assert not {"new1", "only_in_the_module"} & set(run.data.params)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "Pong-v5-3")


@pytest.mark.slow
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
@pytest.mark.parametrize("words", [[], ["trainer.fast_dev_run=true"]])
def test_other_ranks_write_nothing(words: list[str], name: str, tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=bool(words))
    config = compose(name, tmp_path / "run", *words)
    with trackers.attached(trainer, _Logs(0), config, [f"logger.{name}"]):
        (logger,) = trainer.loggers
        logger.log_hyperparams({"a": 1})
        logger.log_metrics({"a": 1.0}, step=1)
        logger.finalize("success")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OFFLINE)
def test_missing_package_is_told_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"lightning.pytorch.loggers.{name}")
    monkeypatch.setattr(module, f"_{name.upper()}_AVAILABLE", False)
    config, trainer = compose(name, tmp_path), Trainer(accelerator="cpu", logger=False)
    expected = (
        f"logger.{name} needs a package that is missing: pip install 'ppo1-lightning[{name}]'"
    )
    with (
        pytest.raises(ConfigurationError, match=re.escape(expected)),
        trackers.attached(trainer, _Logs(0), config, [f"logger.{name}"]),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_unknown_run_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mlflow.id").write_text("gone\n")
    config, trainer = compose("mlflow", tmp_path / "run"), Trainer(accelerator="cpu", logger=False)
    with (
        pytest.raises(ConfigurationError, match=r"^logger=mlflow: .*gone.*docs/loggers.md"),
        trackers.attached(trainer, _Logs(0), config, ["logger.mlflow"]),
    ):
        pass


def test_a_failed_run_is_ended_as_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config, trainer = compose("wandb", tmp_path / "run"), Trainer(accelerator="cpu", logger=False)
    with (
        pytest.raises(RuntimeError, match="broken"),
        trackers.attached(trainer, _Logs(0), config, ["logger.wandb"]),
    ):
        raise RuntimeError("broken")
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")

    def exit_codes() -> list[int]:
        return [r.exit.exit_code for r in _wandb_records(file) if r.HasField("exit")]

    deadline = time.monotonic() + 30  # another process writes the file
    while not exit_codes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert exit_codes() == [1]
