"""Every argument of `lightning.Trainer`: it works, or is refused by name; docs/own_project.md."""

from __future__ import annotations

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_lightning_callbacks
from lightning import Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.profilers import SimpleProfiler

from ppo1_lightning import PPO, MlpPolicy, RolloutDataModule
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.rollouts.evaluation import Evaluation

pytestmark = pytest.mark.heavy

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": -1,
}

WHOLE = (4, 1)
"""All four iterations of the budget, in one epoch."""

WORKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "accelerator": ({"accelerator": "cpu"}, WHOLE),
    "strategy": ({"strategy": "auto"}, WHOLE),
    "devices": ({"devices": 1}, WHOLE),
    "num_nodes": ({"num_nodes": 1}, WHOLE),
    "precision": ({"precision": "bf16-mixed"}, WHOLE),
    "logger": ({"logger": True}, WHOLE),
    "callbacks": ({"callbacks": [callbacks.Timer()]}, WHOLE),
    "fast_dev_run": ({"fast_dev_run": True}, (1, 1)),
    "max_epochs": ({"max_epochs": 1}, WHOLE),
    "min_epochs": ({"min_epochs": 1}, WHOLE),
    "max_steps": ({"max_steps": 2}, (2, 1)),
    "min_steps": ({"min_steps": 1}, WHOLE),
    "max_time": ({"max_time": "00:00:01:00"}, WHOLE),
    "limit_train_batches": ({"limit_train_batches": 2}, (4, 2)),
    "limit_val_batches": ({"limit_val_batches": 0}, WHOLE),
    "limit_test_batches": ({"limit_test_batches": 1}, WHOLE),
    "limit_predict_batches": ({"limit_predict_batches": 1}, WHOLE),
    "val_check_interval": ({"val_check_interval": 2, "check_val_every_n_epoch": None}, WHOLE),
    "check_val_every_n_epoch": ({"check_val_every_n_epoch": 1}, WHOLE),
    "num_sanity_val_steps": ({"num_sanity_val_steps": 1}, WHOLE),
    "log_every_n_steps": ({"log_every_n_steps": 1}, WHOLE),
    "enable_checkpointing": ({"enable_checkpointing": True}, WHOLE),
    "enable_progress_bar": ({"enable_progress_bar": True}, WHOLE),
    "enable_model_summary": ({"enable_model_summary": True}, WHOLE),
    "deterministic": ({"deterministic": "warn"}, WHOLE),
    "benchmark": ({"benchmark": False}, WHOLE),
    "inference_mode": ({"inference_mode": False}, WHOLE),
    "use_distributed_sampler": ({"use_distributed_sampler": False}, WHOLE),
    "profiler": ({"profiler": SimpleProfiler()}, WHOLE),
    "detect_anomaly": ({"detect_anomaly": True}, WHOLE),
    "barebones": (
        {"barebones": True, **dict.fromkeys(QUIET, None), "max_epochs": -1},
        WHOLE,
    ),
    "plugins": ({"plugins": []}, WHOLE),
    "sync_batchnorm": ({"sync_batchnorm": True}, WHOLE),
    "reload_dataloaders_every_n_epochs": (
        {"reload_dataloaders_every_n_epochs": 1, "limit_train_batches": 2},
        (4, 2),
    ),
    "default_root_dir": ({}, WHOLE),  # each of these runs has one
    "enable_autolog_hparams": ({"enable_autolog_hparams": False}, WHOLE),
    "model_registry": ({"model_registry": None}, WHOLE),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "overfit_batches": ({"overfit_batches": 1}, "limit_train_batches"),
    "accumulate_grad_batches": ({"accumulate_grad_batches": 2}, "minibatch_size"),
    "gradient_clip_val": ({"gradient_clip_val": 0.5}, "max_grad_norm"),
    "gradient_clip_algorithm": ({"gradient_clip_algorithm": "value"}, "max_grad_norm"),
    "min_steps": ({"min_steps": 10**6}, "budget"),
    "min_epochs": ({"min_epochs": 2}, "budget"),
    "precision": ({"precision": "64-true"}, "32-true"),
}


def fit(folder: Path, **options: Any) -> tuple[PPO, Trainer]:
    data = RolloutDataModule(
        "CartPole-v1",
        num_envs=4,
        num_steps=32,
        total_iterations=4,
        evaluation=Evaluation(episodes=2, num_envs=2),
    )
    small = partial(MlpPolicy, hidden_size=8)
    module = PPO(small, minibatch_size=64, update_epochs=1, compile=False)
    trainer = Trainer(**{"accelerator": "cpu", "default_root_dir": folder, **QUIET, **options})
    trainer.fit(module, data)
    return module, trainer


def test_the_table_of_the_docs_is_that_of_these_tests() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own_project.md").read_text("utf-8")
    table = page.partition("\n## The Trainer's arguments\n")[2].partition("\n## ")[0]
    lines = (line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `"))
    rows = {name: row for names, row in lines for name in re.findall("`(.+?)`", names)}
    refused = REFUSED | test_lightning_callbacks.REFUSED
    assert rows.keys() == refused.keys() | {"strategy", "sync_batchnorm", "torch.compile(module)"}
    for name, (_, advice) in refused.items():
        assert advice in rows[name]


def test_each_argument_is_here() -> None:
    arguments = inspect.signature(Trainer).parameters
    assert arguments.keys() <= WORKS.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", WORKS)
def test_works(name: str, tmp_path: Path) -> None:
    options, expected = WORKS[name]
    module, trainer = fit(tmp_path, **options)
    assert (module.counters.iterations, trainer.current_epoch) == expected
    assert trainer.global_step == module.counters.iterations


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    options, advice = REFUSED[name]
    with pytest.raises(ConfigurationError) as caught:
        fit(tmp_path, **options)
    message = str(caught.value)
    assert name in message
    assert advice in message
    assert "\n" not in message


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_keep_the_policy(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"'{strategy}'.* leaves the trained policy"):
        fit(tmp_path, strategy=strategy, devices=2)  # before any of them has started
