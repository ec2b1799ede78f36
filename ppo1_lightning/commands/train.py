"""Train from the command line: compose a config, build what it names, call `Trainer.fit`."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.algorithms.entry import (
    check_same_run,
    entry_of,
    identity,
)
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.algorithms.plain import read_checkpoint
from ppo1_lightning.callbacks import InitialWeights, RunCheckpoint
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import keep_runs
from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.commands.announce import announce, interface, tell_what_next
from ppo1_lightning.commands.arithmetic import few_threads, matmul_precision
from ppo1_lightning.commands.process import keep_freed_memory
from ppo1_lightning.commands.without_effect import UnknownMetrics, without_effect
from ppo1_lightning.errors import (
    ConfigurationError,
    RunError,
    check_choice,
    check_integer,
    check_path,
    one_line,
)
from ppo1_lightning.rollouts.datamodule import RolloutDataModule
from ppo1_lightning.rollouts.evaluation import Evaluation
from ppo1_lightning.rollouts.sizes import Sizes
from ppo1_lightning.runs import lock, resume, trackers
from ppo1_lightning.runs.instantiation import check_scalars, make
from ppo1_lightning.runs.signals import exit_status_of_signals
from ppo1_lightning.simulators import EnvironmentSpec
from ppo1_lightning.simulators.vector import pools_of
from ppo1_lightning.system import start_up

log = logging.getLogger("ppo1_lightning")

T = TypeVar("T")


class Parts(NamedTuple):
    """What a config makes, ready for ``trainer.fit``."""

    module: OnPolicyModule
    data: RolloutDataModule
    trainer: Trainer
    plan: Sizes


def train(config: DictConfig) -> float | None:
    """Train as ``config`` says (see ``conf/train.yaml``), in ``trainer.default_root_dir``.

    Returns:
        ``optimized_metric`` as of the last row of metrics, None where there was no row.

    Raises:
        ConfigurationError: anything in it that cannot work, before an environment is built.
        SimulationError: an environment that returns values not to be learned from.
        RankError: one of several processes has failed.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigurationError(f"{missing[0]} is not given, expected {missing[0]}=VALUE")
    if config.get("hparams_search") is not None:
        raise ConfigurationError("hparams_search=... is for python -m ppo1_lightning")
    folder = check_path("trainer.default_root_dir", config.trainer.default_root_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"trainer.default_root_dir={folder} cannot be a folder ({error.strerror})"
        ) from error
    start_up.begin()
    if cli.process_rank() == 0:
        lock.hold(folder)
    try:
        return _train(config, folder)
    finally:
        lock.release(folder)
        start_up.end()


def _train(config: DictConfig, folder: Path) -> float | None:
    try:
        resume.refuse_finished_run(folder, config)
        config, checkpoint = resume.settle(config, folder)
        parts = build(config)
        if HydraConfig.initialized():
            for line in without_effect(HydraConfig.get().overrides.task, config):
                log.warning(line)
        if checkpoint is not None:
            check_same_run(entry_of(checkpoint), _identity(parts.module, parts.data))
    except RunError:  # nothing was trained by this config
        keep_runs.put_back()
        raise
    if checkpoint is not None and resume.is_finished(checkpoint, parts.data.budget):
        log.warning(
            "nothing to train: %s has spent its budget of %s; a larger one extends the run",
            config.ckpt_path,
            parts.data.budget,
        )
        return None
    if launch.is_needed(parts.trainer):
        task = functools.partial(cli.told, fit)
        return launch.run_ranks(task, config, parts.trainer.num_devices)
    return fit(config, parts)


def build(config: DictConfig) -> Parts:
    """Make what ``config`` names, without an environment."""
    precisions = ("highest", "high", "medium")
    check_choice("float32_matmul_precision", config.float32_matmul_precision, precisions)
    data = RolloutDataModule(
        make(config, "env", EnvironmentSpec),
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        total_steps=config.total_steps,
        total_episodes=config.total_episodes,
        total_iterations=config.total_iterations,
        total_seconds=config.total_seconds,
        seed=config.seed,
        evaluation=_evaluation(config),
    )
    policy = make(config, "policy", Callable)
    module = make(config, "algo", OnPolicyModule, policy=policy)
    _build_policy(module, data)
    trainer = _make_trainer(config, _initial_weights(config, module, data))
    launch.check_size(trainer)
    module.trainer = trainer
    sizes = module.sizes(data.num_envs, data.num_steps)
    pools_of(sizes.envs_per_device, data.env.num_pools)  # before ranks start, if they do not divide
    return Parts(module, data, trainer, sizes)


def fit(config: DictConfig, parts: Parts | None = None) -> float | None:
    """Train from where ``config`` says, which `resume.settle` has settled: one rank's work."""
    module, data, trainer, sizes = parts or build(config)
    folder, here = Path(config.trainer.default_root_dir), Path.cwd()
    if trainer.is_global_zero:
        sees = interface(*data.adapters, module.policy)
        announce(config, {**sees, **sizes.describe(data.budget)}, folder)
    keep_freed_memory()
    threads = few_threads(module.policy, speak=trainer.is_global_zero)
    products = matmul_precision(config.float32_matmul_precision)
    loggers = trackers.attached(trainer, module, config, _keys(config, "logger"))
    with threads, products, exit_status_of_signals(), loggers:
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    if trainer.is_global_zero:
        tell_what_next(folder, here, config, module.episodes.returns, _best_score(trainer))
    return _objective(module, config.optimized_metric)


def _best_score(trainer: Trainer) -> float:
    """Return the score of ``best.ckpt``, which is not finite where there is none."""
    kept = trainer.checkpoint_callback
    return kept.best_score if isinstance(kept, RunCheckpoint) else -math.inf


def _evaluation(config: DictConfig) -> Evaluation | None:
    """Return how to evaluate while training, None where that is off."""
    known = ("every_steps", *(field.name for field in dataclasses.fields(Evaluation)))
    given = config.evaluation
    if not isinstance(given, DictConfig | None):
        raise ConfigurationError(f"evaluation={given} is not a config of {', '.join(known)}")
    for name in given or ():
        check_choice("a key of evaluation", name, known)
    if given is None or given.get("every_steps") is None:
        return None
    return Evaluation(**{k: v for k, v in given.items() if k != "every_steps"})  # type: ignore[arg-type]


def _validation(config: DictConfig) -> dict[str, Any]:
    """Return the Trainer's arguments for it: as many iterations as come next to ``every_steps``."""
    if _evaluation(config) is None:
        return {}
    steps = check_integer("evaluation.every_steps", config.evaluation.every_steps, at_least=1)
    interval = max(1, round(steps / (config.num_envs * config.num_steps)))
    return {"val_check_interval": interval, "check_val_every_n_epoch": None}


def _objective(module: OnPolicyModule, name: str) -> float | None:
    if "env_steps" not in module.metrics:  # at most an evaluation was made up for
        return None
    check_choice("optimized_metric", name, module.metrics)
    return module.metrics[name]


def _build_policy(module: OnPolicyModule, data: RolloutDataModule) -> None:
    """Build the policy, so that mistakes show before other processes are launched."""
    try:
        module.build_policy(*data.spaces)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        hint = f"; ~policy.{unknown[1]} leaves it out" if unknown else ""  # of a preset's, for one
        raise ConfigurationError(f"policy: {one_line(error)}{hint}") from error


def _identity(module: OnPolicyModule, data: RolloutDataModule) -> dict[str, Any]:
    """Describe what a checkpoint has to agree with."""
    return identity(data.env.id, data.spaces, module.policy, module.algorithm())


def _initial_weights(
    config: DictConfig, module: OnPolicyModule, data: RolloutDataModule
) -> list[Callback]:
    """Return what loads the weights that a new run starts from, nothing without ``init_from``."""
    if config.init_from is None:
        return []
    entry = entry_of(read_checkpoint(config.init_from, "init_from"))
    of_any_environment = {**entry, "environment": None}  # another one is the point
    check_same_run(of_any_environment, _identity(module, data))
    return [InitialWeights(config.init_from)]


def _make_trainer(config: DictConfig, initial: list[Callback]) -> Trainer:
    callbacks = initial + [make(config, key, Callback) for key in _keys(config, "callbacks")]
    callbacks.append(UnknownMetrics(_named_metrics(config)))
    check_scalars(config, "trainer", Trainer)
    validation = _validation(config)
    for name in ("callbacks", "logger", *validation):
        if config.trainer.get(name) is not None:
            place = "evaluation.every_steps" if name in validation else f"{name}.NAME"
            raise ConfigurationError(f"trainer.{name} is set by {place}, expected that instead")
    # Lightning has both a switch and an object for each, and refuses a switch without its object
    if not config.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    if not config.trainer.enable_checkpointing:
        callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
    return make(
        config,
        "trainer",
        Trainer,
        callbacks=callbacks,
        logger=False,  # they come with the run
        **validation,
    )


def _named_metrics(config: DictConfig) -> dict[str, str]:
    """Return the metrics that a config names, by its keys."""
    keys = ("optimized_metric", "callbacks.checkpoint.monitor")
    named = {key: name for key in keys if (name := OmegaConf.select(config, key)) is not None}
    for key, name in named.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"{key}={name} is not the name of a metric")
    return named


def _keys(config: DictConfig, group: str) -> list[str]:
    """Return the keys of a group's entries, null ones left out."""
    entries = config.get(group) or {}
    if not isinstance(entries, DictConfig | dict):
        raise ConfigurationError(f"{group}={entries} is not a config of several entries")
    return [f"{group}.{name}" for name, entry in entries.items() if entry is not None]
