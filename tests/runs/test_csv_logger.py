"""`CSVLogger`: what is in the file after every row, resume and crash."""

from __future__ import annotations

import csv
import math
import os
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from ppo1_lightning.runs.csv_logger import CSVLogger


def table(logger: CSVLogger) -> list[list[str]]:
    with logger.path.open(newline="") as file:
        return list(csv.reader(file))


def test_path(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert logger.path == tmp_path / "csv" / "metrics.csv"
    assert logger.save_dir == str(tmp_path)
    assert CSVLogger(tmp_path, name="a", version="b").path == tmp_path / "a" / "b" / "metrics.csv"
    assert not list(tmp_path.iterdir())  # nothing before the first row


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for row in range(1, 4):
        logger.log_metrics({"loss/value": row / 2, "env_steps": 10 * row}, step=10 * row)
        assert len(table(logger)) == 1 + row
    assert table(logger) == [
        ["env_steps", "loss/value"],
        ["10", "0.5"],
        ["20", "1.0"],
        ["30", "1.5"],
    ]


def test_numbers_keep_their_value(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    values = {"a": 0.1 + 0.2, "b": math.nan, "c": -math.inf, "d": torch.tensor(0.1), "e": 2**60}
    logger.log_metrics(values, step=0)
    row = dict(zip(*table(logger), strict=True))
    assert row["b"] == "nan"
    assert row["c"] == "-inf"
    assert float(row["a"]) == 0.1 + 0.2
    assert float(row["d"]) == torch.tensor(0.1).item()
    assert int(row["e"]) == 2**60


def test_new_columns_come_last_and_missing_values_are_empty(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"b": 1}, step=1)
    logger.log_metrics({"c": 2, "a": 3}, step=2)
    logger.log_metrics({"b": 4}, step=3)
    assert table(logger) == [
        ["env_steps", "b", "c", "a"],
        ["1", "1", "", ""],
        ["2", "", "2", "3"],
        ["3", "4", "", ""],
    ]
    assert os.listdir(tmp_path / "csv") == ["metrics.csv"]


def test_rows_stay_without_a_checkpoint(tmp_path: Path) -> None:
    for step, metrics in [(1, {"a": 1}), (2, {"a": 2}), (2, {"b": 5, "a": 3})]:
        CSVLogger(tmp_path).log_metrics(metrics, step)
    assert table(CSVLogger(tmp_path)) == [
        ["env_steps", "a", "b"],
        ["1", "1", ""],
        ["2", "2", ""],
        ["2", "3", "5"],
    ]


def test_rows_after_a_checkpoint_are_cut_off(tmp_path: Path) -> None:
    before = CSVLogger(tmp_path)
    for step in (10, 20, 30, 40):
        before.log_metrics({"a": step}, step)
    for purge_step in (31, 21, 21):  # killed before its first row, before its second, and again
        logger = CSVLogger(tmp_path, purge_step=purge_step)
        assert table(logger)[-1][0] == {31: "40", 21: "30"}[purge_step]
        logger.log_metrics({"a": -1}, step=30)
    logger.log_metrics({"b": -2}, step=40)
    assert [row[:2] for row in table(logger)[1:]] == [
        ["10", "10"],
        ["20", "20"],
        ["30", "-1"],
        ["40", ""],
    ]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ("env_steps,a\n1,2\n2,12", [["env_steps", "a"], ["1", "2"], ["9", "9"]]),
        ("env_steps,a\n1,2\n", [["env_steps", "a"], ["1", "2"], ["9", "9"]]),
        ("env_st", [["env_steps", "a"], ["9", "9"]]),
        ("", [["env_steps", "a"], ["9", "9"]]),
        ("a,step\n1,2\n", [["env_steps", "a", "step"], ["", "1", "2"], ["9", "9", ""]]),
    ],
)
def test_continues_whatever_a_crash_left(
    tmp_path: Path, left: str, expected: list[list[str]]
) -> None:
    logger = CSVLogger(tmp_path)
    logger.path.parent.mkdir()
    logger.path.write_text(left)
    logger.log_metrics({"a": 9}, step=9)
    assert table(logger) == expected


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    CSVLogger(tmp_path).log_metrics({"a": 1}, step=1)
    assert not list(tmp_path.iterdir())


def test_a_row_costs_the_same_in_a_long_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    metrics = {f"metric_{i}": i / 7 for i in range(16)}
    start = time.perf_counter()
    for step in range(5000):
        logger.log_metrics(metrics, step)
    assert (time.perf_counter() - start) / 5000 < 2e-3
    assert len(table(logger)) == 5001


class _Logs(LightningModule):
    """Logs a row per batch, as PPO does."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters({"a": 1})

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for logger in self.loggers:
            logger.log_metrics({"return": float(batch)}, step=100 * (batch_idx + 1))


def test_under_a_trainer(tmp_path: Path) -> None:
    for _ in range(2):
        Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=CSVLogger(tmp_path),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(_Logs(), DataLoader([1.5, 2.5]))  # pyright: ignore[reportArgumentType]
    logger = CSVLogger(tmp_path)
    assert table(logger) == [["env_steps", "return"], *2 * [["100", "1.5"], ["200", "2.5"]]]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["metrics.csv"]
