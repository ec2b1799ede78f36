"""Every callback of Lightning's: it works, or is refused by name; docs/own_project.md."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from ppo1_lightning import PPO, MlpPolicy, RolloutDataModule
from ppo1_lightning.errors import ConfigurationError

pytestmark = pytest.mark.heavy

TRAINS: dict[str, Callable[[], Callback]] = {
    "BasePredictionWriter": callbacks.BasePredictionWriter,
    "Callback": callbacks.Callback,
    "Checkpoint": callbacks.Checkpoint,
    "DeviceStatsMonitor": partial(callbacks.DeviceStatsMonitor, cpu_stats=True),
    "EarlyStopping": partial(callbacks.EarlyStopping, "kl", patience=99),
    "LambdaCallback": callbacks.LambdaCallback,
    "LearningRateMonitor": callbacks.LearningRateMonitor,
    "ModelCheckpoint": callbacks.ModelCheckpoint,
    "ModelSummary": callbacks.ModelSummary,
    "OnExceptionCheckpoint": partial(callbacks.OnExceptionCheckpoint, "."),
    "ProgressBar": callbacks.ProgressBar,
    "RichModelSummary": callbacks.RichModelSummary,
    "RichProgressBar": callbacks.RichProgressBar,
    "ThroughputMonitor": partial(
        callbacks.ThroughputMonitor, batch_size_fn=lambda batch: 1, window_size=2
    ),
    "Timer": callbacks.Timer,
    "TQDMProgressBar": callbacks.TQDMProgressBar,
}
"""They watch: the policy is the same with them."""

CHANGES: dict[str, Callable[[], Callback]] = {
    "BackboneFinetuning": partial(
        callbacks.BackboneFinetuning, unfreeze_backbone_at_epoch=2, backbone_initial_lr=1e-3
    ),
    "BaseFinetuning": lambda: Thaw(),
    "EMAWeightAveraging": partial(callbacks.EMAWeightAveraging, decay=0.5),
    "StochasticWeightAveraging": partial(
        callbacks.StochasticWeightAveraging, swa_lrs=1e-3, swa_epoch_start=1
    ),
    "WeightAveraging": callbacks.WeightAveraging,
}
"""They are to change what is learned."""

REFUSED: dict[str, tuple[Callable[[], Callback], str]] = {
    "BatchSizeFinder": (callbacks.BatchSizeFinder, "tune"),
    "GradientAccumulationScheduler": (
        partial(callbacks.GradientAccumulationScheduler, {0: 2}),
        "minibatch_size",
    ),
    "LearningRateFinder": (callbacks.LearningRateFinder, "tune"),
    "ModelPruning": (partial(callbacks.ModelPruning, "l1_unstructured"), "after training"),
    "SpikeDetection": (callbacks.SpikeDetection, "EarlyStopping"),
}

Q: dict[str, Any] = {"accelerator": "cpu", "max_epochs": -1, "log_every_n_steps": 1}


class WithBackbone(PPO):
    @property
    def backbone(self) -> Any:
        return self.policy.trunk


def run(
    folder: Path, *given: Callback, iterations: int = 3, path: Any = False, **options: Any
) -> tuple[Any, Trainer]:
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=32, total_iterations=iterations)
    small = partial(MlpPolicy, hidden_size=8)
    module = WithBackbone(small, minibatch_size=64, update_epochs=1, compile=path)
    options = {"logger": CSVLogger(folder), **Q, **options}
    trainer = Trainer(default_root_dir=folder, callbacks=list(given), **options)
    trainer.fit(module, data)
    return module, trainer


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return weights(run(tmp_path_factory.mktemp("plain"))[0])


def test_each_callback_is_here() -> None:
    assert set(callbacks.__all__) == TRAINS.keys() | CHANGES.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", TRAINS)
def test_trains(name: str, plain: Tensor, tmp_path: Path) -> None:
    callback = TRAINS[name]()
    assert torch.equal(weights(run(tmp_path, callback)[0]), plain)
    (log,) = tmp_path.rglob("metrics.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    for column in (c for c in rows[0] if c.startswith(("DeviceStats", "lr-", "train/"))):
        steps = [int(row["step"]) for row in rows if row[column]]
        assert steps == sorted(steps), column  # lr at 0 twice: with the epoch, with the iteration
        assert set(steps) <= {0, 128, 256, 384}, column


@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str, plain: Tensor, tmp_path: Path) -> None:
    module, _ = run(tmp_path, CHANGES[name](), limit_train_batches=1)
    assert not torch.equal(weights(module), plain)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    make, advice = REFUSED[name]
    with pytest.raises(ConfigurationError, match=f"{name} has no meaning here, .*{advice}") as told:
        run(tmp_path, make())
    assert "\n" not in str(told.value)


class Thaw(callbacks.BaseFinetuning):
    """Freezes the trunk, and thaws it in the second iteration."""

    def __init__(self, how: str = "unfreeze_and_add_param_group") -> None:
        super().__init__()
        self.how, self.norms = how, []

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.policy.trunk)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        self.norms.append(weights(pl_module.policy.trunk).norm().item())
        if epoch == 1:
            more = (optimizer, 1e-4) if "add" in self.how else ()
            getattr(self, self.how)(pl_module.policy.trunk, *more)


@pytest.mark.parametrize("path", [False, "trace"])
def test_what_is_thawed_learns_at_its_own_rate(path: Any, tmp_path: Path) -> None:
    thaw = Thaw()
    module, _ = run(tmp_path, thaw, iterations=4, path=path, limit_train_batches=1)
    assert thaw.norms[0] == thaw.norms[1] != thaw.norms[2] != thaw.norms[3]
    assert [group["lr"] for group in module.optimizers().param_groups] == [3e-4, 1e-4]


@pytest.mark.parametrize("path", [False, "trace"])
def test_what_is_thawed_without_a_group_learns_as_the_rest(path: Any, tmp_path: Path) -> None:
    thaw = Thaw("make_trainable")
    module, _ = run(tmp_path, thaw, iterations=4, path=path, limit_train_batches=1)
    assert thaw.norms[0] == thaw.norms[1] != thaw.norms[2] != thaw.norms[3]
    assert len(module.optimizers().param_groups) == 1
