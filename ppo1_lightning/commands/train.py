"""Train from the command line: compose a config, build what it names, call `Trainer.fit`."""

from __future__ import annotations

import functools
import logging
import os
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ppo1_lightning.algorithms.entry import (
    check_same_run,
    entry_of,
    policy_entry,
    read_checkpoint,
    spaces_entry,
)
from ppo1_lightning.algorithms.ppo import PPO
from ppo1_lightning.callbacks import InitialWeights
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.commands.process import keep_freed_memory
from ppo1_lightning.errors import (
    ConfigurationError,
    check_choice,
    check_integer,
    check_types,
    one_line,
)
from ppo1_lightning.policies import MlpPolicy
from ppo1_lightning.rollouts.datamodule import RolloutDataModule
from ppo1_lightning.rollouts.evaluation import Evaluation
from ppo1_lightning.rollouts.sizes import Sizes
from ppo1_lightning.runs import resume, trackers
from ppo1_lightning.runs.instantiation import make
from ppo1_lightning.runs.signals import exit_status_of_signals
from ppo1_lightning.simulators import EnvironmentSpec

log = logging.getLogger("ppo1_lightning")

_NOT_THE_USERS = {"ppo1_lightning", "lightning", "torch", "contextlib"}
"""Packages whose code alone runs while Lightning looks at the Trainer's arguments."""

_YAML = {"None": "null", "True": "true", "False": "false"}


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
        raise ConfigurationError(cli.explain_missing(missing[0]))
    if config.get("hparams_search") is not None:
        raise ConfigurationError("hparams_search=... is for python -m ppo1_lightning")
    precisions = ("highest", "high", "medium")
    check_choice("float32_matmul_precision", config.float32_matmul_precision, precisions)
    folder, checkpoint = Path(config.trainer.default_root_dir), None
    if not launch.is_rank():  # whose launcher has settled where to start
        cli.refuse_finished_run(folder, config)
        config, checkpoint = resume.settle(config, folder)
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
    module = make(config, "algo", PPO, policy=policy)
    identity = _identify(data, policy)
    trainer = _make_trainer(config, _initial_weights(config, identity))
    launch.check_size(trainer)
    sizes = Sizes.create(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        minibatch_size=config.algo.minibatch_size,
        mpi_workers=config.mpi_workers,
        epochs=module.passes,
        devices=trainer.world_size,
    )
    if checkpoint is not None:
        check_same_run(entry_of(checkpoint), identity)
        if resume.is_finished(checkpoint, data.budget):
            log.warning(
                "nothing to train: %s has spent its budget of %s; a larger one extends the run",
                config.ckpt_path,
                data.budget,
            )
            return None
    if launch.is_needed(trainer):
        return launch.run_ranks(config, trainer)
    if trainer.is_global_zero:
        _announce(config, sizes.describe(data.budget), folder)
    keep_freed_memory()
    threads = few_threads(policy, speak=trainer.is_global_zero)
    products = matmul_precision(config.float32_matmul_precision)
    loggers = trackers.attached(trainer, module, config, _keys(config, "logger"))
    with threads, products, exit_status_of_signals(), _lightnings_refusals(), loggers:
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    if trainer.is_global_zero:
        _tell_what_next(folder, config)
    return _objective(module, config.optimized_metric)


def _evaluation(config: DictConfig) -> Evaluation | None:
    """Return how to evaluate while training, None where that is off."""
    if config.evaluation is None or config.evaluation.every_steps is None:
        return None
    return Evaluation(**{k: v for k, v in config.evaluation.items() if k != "every_steps"})  # type: ignore[arg-type]


def _validation(config: DictConfig) -> dict[str, Any]:
    """Return the Trainer's arguments for it: as many iterations as come next to ``every_steps``."""
    if _evaluation(config) is None:
        return {}
    steps = check_integer("evaluation.every_steps", config.evaluation.every_steps, at_least=1)
    interval = max(1, round(steps / (config.num_envs * config.num_steps)))
    return {"val_check_interval": interval, "check_val_every_n_epoch": None}


def _tell_what_next(folder: Path, config: DictConfig) -> None:
    """Say where the run is, and what to do with it."""
    if not (resume.checkpoint_folder(config, folder) / "last.ckpt").is_file():
        return
    near = Path.cwd() in folder.absolute().parents
    place = shlex.quote(os.path.relpath(folder) if near else str(folder))
    report = f"; report {place}" if (folder / "csv" / "metrics.csv").is_file() else ""
    log.info(
        "everything is in %s; next: python -m ppo1_lightning evaluate run=%s "
        "(or record, play run=%s%s)",
        *[place] * 3,
        report,
    )


def _objective(module: PPO, name: str) -> float | None:
    if not module.metrics:
        return None
    check_choice("optimized_metric", name, module.metrics)
    return module.metrics[name]


def _identify(data: RolloutDataModule, policy: Callable[..., Any]) -> dict[str, Any]:
    """Describe what a checkpoint has to agree with.

    It builds the policy once, so that mistakes show before other processes are launched.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            built = policy(*data.spaces)
    except TypeError as error:
        function = policy.func if isinstance(policy, functools.partial) else policy
        raise ConfigurationError(f"policy: {cli.explain_call(function, error)}") from error
    return {
        "environment": data.env.id,
        "spaces": spaces_entry(*data.spaces),
        "policy": policy_entry(built),
    }


def _initial_weights(config: DictConfig, identity: Mapping[str, Any]) -> list[Callback]:
    """Return what loads the weights that a new run starts from, nothing without ``init_from``."""
    if config.init_from is None:
        return []
    entry = entry_of(read_checkpoint(config.init_from, "init_from"))
    check_same_run({**entry, "environment": None}, dict(identity))  # another one is the point
    return [InitialWeights(config.init_from)]


def _make_trainer(config: DictConfig, initial: list[Callback]) -> Trainer:
    callbacks = initial + [make(config, key, Callback) for key in _keys(config, "callbacks")]
    # Lightning has both a switch and an object for each, and refuses a switch without its object
    if not config.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    if not config.trainer.enable_checkpointing:
        callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
    check_types("trainer", config.trainer, Trainer)
    return make(
        config,
        "trainer",
        Trainer,
        callbacks=callbacks,
        logger=False,  # they come with the run
        **_validation(config),
    )


def _keys(config: DictConfig, group: str) -> list[str]:
    """Return the keys of the group's entries, null ones left out."""
    entries = config.get(group)
    if not entries:
        return []
    if not isinstance(entries, DictConfig):
        raise ConfigurationError(f"{group}={entries} is not a config of several entries")
    return [f"{group}.{name}" for name, entry in entries.items() if entry is not None]


@contextmanager
def _lightnings_refusals() -> Iterator[None]:
    """Turn what Lightning's own code finds wrong with the Trainer's arguments into a mistake.

    It looks at some only when the run starts, and then raises whatever comes of it. An error within
    a function of the user's, or in calling one, is left alone.
    """
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
        is_call = isinstance(error, TypeError) and re.search(r"\) (takes|missing|got)", str(error))
        if modules[-1] != "lightning" or set(modules) - _NOT_THE_USERS or is_call:
            raise
        raise ConfigurationError(f"Lightning refuses a trainer.*: {one_line(error)}") from error


@contextmanager
def few_threads(policy: Callable[..., Any], *, speak: bool) -> Iterator[None]:
    """Use one intra-op thread for an MLP: splitting such small products costs more than it gains.

    OMP_NUM_THREADS, where the user has set it, decides instead.
    """
    function = policy.func if isinstance(policy, functools.partial) else policy
    if function is not MlpPolicy or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    if speak:
        log.info("PyTorch computes on 1 CPU thread, for a small network (OMP_NUM_THREADS decides)")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with cli.environment_variable("OMP_NUM_THREADS", "1"):  # read by Lightning's launcher
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute float32 matrix products as `torch.set_float32_matmul_precision` says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _announce(config: DictConfig, sizes: Mapping[str, str], folder: Path) -> None:
    """Print the resolved config and the sizes, and save both with the run."""
    resolved = OmegaConf.to_container(config, resolve=True)
    hydra_folder = folder / ".hydra"
    hydra_folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(resolved), hydra_folder / "resolved.yaml")
    tree = Tree("config", guide_style="dim")
    _grow(tree, resolved)
    table = Table("plan", "", show_edge=False, box=None)
    for name, value in sizes.items():
        table.add_row(name, value)
    for content, file in ((tree, "config_tree.txt"), (table, "plan.txt")):
        rich.print(content)
        with (folder / file).open("w", encoding="utf-8") as stream:
            Console(file=stream, width=200).print(content)


def _grow(tree: Tree, value: Any) -> None:
    for key, child in value.items():
        if isinstance(child, dict) and child:
            _grow(tree.add(Text(key, style="bold")), child)
        else:
            tree.add(Text(f"{key}: {_YAML.get(str(child), child)}", no_wrap=True, overflow="fold"))
