"""Train from the command line: compose a config, build what it names, call `Trainer.fit`."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ppo1_lightning import cli
from ppo1_lightning.checkpoint import check_same_run, entry_of, policy_entry, spaces_entry
from ppo1_lightning.data import RolloutDataModule
from ppo1_lightning.errors import ConfigurationError, check_types, one_line
from ppo1_lightning.module import PPO
from ppo1_lightning.plan import Plan
from ppo1_lightning.policies import MlpPolicy
from ppo1_lightning.simulators import EnvironmentSpec

log = logging.getLogger("ppo1_lightning")

_YAML = {"None": "null", "True": "true", "False": "false"}


def main() -> None:
    """Run the command line: ``python -m ppo1_lightning env=pong``."""
    # of Lightning's own code: nobody who reads it can do anything about it
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
    cli.run(train, "train")


def train(config: DictConfig) -> None:
    """Train as ``config`` says (see ``conf/train.yaml``), in the folder that Hydra made.

    Raises:
        ConfigurationError: anything in it that cannot work, before an environment is built.
        SimulationError: an environment that returns values not to be learned from.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigurationError(cli.explain_missing(missing[0]))
    cli.refuse_finished_run(folder, config.ckpt_path)
    data = RolloutDataModule(
        _make(config, "env", EnvironmentSpec),
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        total_steps=config.total_steps,
        total_episodes=config.total_episodes,
        total_iterations=config.total_iterations,
        total_seconds=config.total_seconds,
        seed=config.seed,
    )
    policy = _make(config, "policy", Callable)
    module = _make(config, "algo", PPO, policy=policy)
    trainer = _make_trainer(config)
    plan = Plan.create(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        minibatch_size=config.algo.minibatch_size,
        num_workers=config.num_workers,
        update_epochs=config.algo.update_epochs,
        devices=trainer.world_size,
    )
    identity = _identify(data, policy)
    checkpoint = None
    if config.ckpt_path is not None:
        check_same_run(entry_of(read_checkpoint(config.ckpt_path)), identity)
        # Lightning takes a path that starts with "http" for an address, and "best" for a keyword
        checkpoint = Path(config.ckpt_path).absolute()
    if trainer.is_global_zero:
        _announce(config, plan.describe(data.budget), folder)
    with _few_threads(policy, speak=trainer.is_global_zero), _lightnings_refusals():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as plain data, so that nothing in it is imported or called.

    Raises:
        ConfigurationError: there is no such file, it is truncated or damaged, holds anything but
            plain data, or is not a checkpoint of a training run.
    """
    if not isinstance(path, str | Path):
        raise ConfigurationError(f"ckpt_path={path!r} is not the path of a file")
    if "://" in str(path):
        raise ConfigurationError(f"ckpt_path={path} is an address, expected a file: download it")
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigurationError(f"ckpt_path={path} {what}, expected a file such as last.ckpt")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"ckpt_path={path} is damaged or holds more than plain data, expected a checkpoint "
            "of this package; nothing in it was run"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise ConfigurationError(
            f"ckpt_path={path} is truncated or damaged, expected a whole checkpoint"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "loops"} <= content.keys():
        raise ConfigurationError(f"ckpt_path={path} is not a checkpoint of a training run")
    return content


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


def _make_trainer(config: DictConfig) -> Trainer:
    callbacks = [_make(config, key, Callback) for key in _keys(config, "callbacks")]
    # Lightning has both a switch and an object for each, and refuses a switch without its object
    if not config.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    if not config.trainer.enable_checkpointing:
        callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
    loggers = [_make(config, key, Logger) for key in _keys(config, "logger")]
    check_types("trainer", config.trainer, Trainer)
    trainer = _make(config, "trainer", Trainer, callbacks=callbacks, logger=loggers or False)
    if trainer.world_size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigurationError(
            f"-m cannot run on {trainer.world_size} devices at once, expected trainer.devices=1"
        )
    return trainer


def _keys(config: DictConfig, group: str) -> list[str]:
    """Return the keys of the group's entries, null ones left out."""
    entries = config.get(group)
    if not entries:
        return []
    if not isinstance(entries, DictConfig):
        raise ConfigurationError(f"{group}={entries} is not a config of several entries")
    return [f"{group}.{name}" for name, entry in entries.items() if entry is not None]


def _make(config: DictConfig, key: str, kind: Any, **arguments: Any) -> Any:
    """Return what the node ``key`` describes, which has to be a ``kind``."""
    node = OmegaConf.select(config, key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        hint = "; null leaves it out" if "." in key else ""
        raise ConfigurationError(f"{key}={node} is not a config with a _target_{hint}")
    try:
        made = instantiate(node, **arguments, _convert_="all")
    except TypeError as error:  # Hydra's own; those of what it calls come as its exceptions
        raise ConfigurationError(f"{key}: {one_line(error)}") from error
    if not isinstance(made, kind):
        raise ConfigurationError(
            f"{key}._target_={node._target_} makes a {type(made).__name__}, "
            f"expected a {kind.__name__}"
        )
    return made


@contextmanager
def _lightnings_refusals() -> Iterator[None]:
    """Turn what Lightning's own code finds wrong with the Trainer's arguments into a mistake.

    It looks at some only when the run starts, and then raises whatever comes of it.
    """
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith("lightning."):
            raise
        raise ConfigurationError(f"Lightning refuses a trainer.*: {one_line(error)}") from error


@contextmanager
def _few_threads(policy: Callable[..., Any], *, speak: bool) -> Iterator[None]:
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


def _announce(config: DictConfig, plan: Mapping[str, str], folder: Path) -> None:
    """Print the resolved config and the plan, and save both with the run."""
    resolved = OmegaConf.to_container(config, resolve=True)
    hydra_folder = folder / ".hydra"
    hydra_folder.mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(resolved), hydra_folder / "resolved.yaml")
    tree = Tree("config", guide_style="dim")
    _grow(tree, resolved)
    table = Table("plan", "", show_edge=False, box=None)
    for name, value in plan.items():
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
