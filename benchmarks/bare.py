"""Our collection and update in a bare loop: no Trainer, no loggers, no callbacks."""

from __future__ import annotations

import os
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.plugins.precision import Precision
from omegaconf import DictConfig

from benchmarks.cases import CASES, COMMON
from benchmarks.measure import Measurement
from ppo1_lightning import PPO, MlpPolicy, RolloutDataModule
from ppo1_lightning.commands.config import config_directory
from ppo1_lightning.commands.process import keep_freed_memory
from ppo1_lightning.rollouts.dataset import RolloutDataset


class BareTrainer:
    """What `PPO` and `RolloutDataModule` ask of a Trainer."""

    world_size = 1
    should_stop = False
    is_global_zero = True

    def __init__(self, module: BarePPO, data: RolloutDataModule) -> None:
        self.lightning_module, self.datamodule = module, data
        self.loggers: list[Any] = []
        self.lr_scheduler_configs: list[Any] = []
        self.callback_metrics: dict[str, Any] = {}
        self.precision_plugin = Precision()


class BarePPO(PPO):
    """`PPO` without what Lightning wraps around its optimizer and its metrics."""

    optimizer: torch.optim.Optimizer

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer as it is."""
        return self.optimizer

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing."""


class Bare:
    """A case's parts, ready to run; keep it: the parts hold the trainer weakly."""

    def __init__(self, case: str, overrides: list[str]) -> None:
        config = compose_case(case, overrides)
        self.module: BarePPO
        self.module, data = parts_of(config)
        self.rows = config.num_envs * config.num_steps
        self.trainer: Any = BareTrainer(self.module, data)
        self.module.trainer = data.trainer = self.trainer
        self.module.configure_model()
        self.module.optimizer = self.module.configure_optimizers()
        if isinstance(self.module.policy, MlpPolicy) and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        keep_freed_memory()  # both as the command line does
        self.module.on_train_start()
        self.dataset: RolloutDataset = data.train_dataloader()

    def run(self, seconds: float, *, learn: bool) -> dict[str, Any]:
        """Collect rollouts, and learn from them where asked, for a while.

        The first one is learned from in any case, since that decides how the policy acts.
        """
        measurement = Measurement(seconds)
        steps, enough = 0, False
        while not enough:
            measurement.begin()
            rollout = self.dataset.collect()
            if learn or steps == 0:
                self.module.training_step(rollout, 0)
            steps += self.rows
            enough = measurement.tick(steps)
        self.dataset.close()
        return measurement.result(versions={"torch": torch.__version__})


def compose_case(case: str, overrides: list[str]) -> DictConfig:
    """Return the config that our command line composes for a case."""
    target = "algo._target_=benchmarks.bare.BarePPO"
    return compose_words(*CASES[case], *COMMON, *overrides, target)


def compose_words(*words: str) -> DictConfig:
    """Return the config that our command line composes for some words."""
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return compose("train", [*words])


def parts_of(config: DictConfig) -> tuple[Any, RolloutDataModule]:
    """Return the module and the data that a config names."""
    module = instantiate(config.algo, policy=instantiate(config.policy), _convert_="all")
    data = RolloutDataModule(
        instantiate(config.env, _convert_="all"),
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        total_steps=config.total_steps,
        seed=config.seed,
    )
    return module, data
