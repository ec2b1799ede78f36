"""Evaluate a trained policy: ``python -m ppo1_lightning evaluate run=outputs/...``."""

from __future__ import annotations

import functools
import json
import logging
import math
import signal
import threading
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.commands.train import few_threads
from ppo1_lightning.errors import check_flag
from ppo1_lightning.rollouts.datamodule import EvaluationDataModule
from ppo1_lightning.rollouts.evaluation import Episodes, Evaluation
from ppo1_lightning.runs.files import replacing
from ppo1_lightning.runs.instantiation import make
from ppo1_lightning.runs.load import TrainedRun, load_run

log = logging.getLogger("ppo1_lightning")


def main() -> None:
    """Run the command line."""
    cli.run(evaluate, "evaluate")


def evaluate(config: DictConfig) -> float:
    """Evaluate as ``config`` says (see ``conf/evaluate.yaml``); write a JSON beside the checkpoint.

    Returns:
        The mean return.

    Raises:
        ConfigurationError: no such run, or a number out of range.
        SimulationError: an environment that returns values that are no numbers.
        StorageError: the result cannot be written.
    """
    evaluation = Evaluation(
        config.episodes, config.num_envs, config.deterministic, config.max_steps
    )
    trainer: Trainer = make(config, "trainer", Trainer, callbacks=[EndAtOnce()])
    if launch.is_needed(trainer):
        task = functools.partial(cli.told, evaluate)
        return launch.run_ranks(task, config, trainer.num_devices)
    launch.check_size(trainer)
    trained = load_run(config.run, config.ckpt_path, trust=check_flag("trust", config.trust))
    seed = trained.module.seed if config.seed is None else config.seed
    data = EvaluationDataModule(trained.environment, evaluation, seed=seed)
    with few_threads(trained.module.policy, speak=False):
        trainer.test(trained.module, data, verbose=False)
    assert trained.module.evaluated is not None
    result = _result(trained, evaluation, seed, trained.module.evaluated)
    if trainer.is_global_zero:
        _tell(result)
        log.info("%s", _save(result, trained.checkpoint_path, evaluation))
    return result["return_mean"]


class EndAtOnce(Callback):
    """Lets SIGTERM end an evaluation: Lightning would wait for all of its episodes."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _result(
    trained: TrainedRun, evaluation: Evaluation, seed: int, episodes: Episodes
) -> dict[str, Any]:
    """Return what is saved, in plain JSON values: null where there is no number."""
    summary = {k: None if math.isnan(v) else v for k, v in episodes.summary().items()}
    return {
        "environment": trained.environment.id,
        "checkpoint": trained.checkpoint_path.name,
        "env_steps": trained.module.counters.env_steps,
        "deterministic": evaluation.deterministic,
        "seed": seed,
        "num_envs": len(evaluation.shares()),
        **summary,
        "episodes": len(episodes.returns),
        "cut_off": episodes.cut_off,
        "returns": episodes.returns.tolist(),
        "lengths": episodes.lengths.long().tolist(),
    }


def _tell(result: dict[str, Any]) -> None:
    log.info(
        "%s after %s steps: %d %s, %s",
        result["environment"],
        f"{result['env_steps']:,}",
        result["episodes"],
        "episode" if result["episodes"] == 1 else "episodes",
        "most likely actions" if result["deterministic"] else "sampled actions",
    )
    line = f"return {result['return_mean']:,.2f}"
    if result["return_std"] is not None:
        line += (
            f" (95 % interval {result['return_low']:,.2f} to {result['return_high']:,.2f}), "
            f"std {result['return_std']:,.2f}"
        )
    log.info("%s; length %s", line, f"{result['length_mean']:,.1f}")


def _save(result: dict[str, Any], checkpoint: Path, evaluation: Evaluation) -> Path:
    kind = ".deterministic" if evaluation.deterministic else ""
    path = checkpoint.with_suffix(f"{kind}.evaluation.json")
    with replacing(path) as new:
        new.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path
