"""Train from the command line: compose a config, build what it names, call `Trainer.fit`."""

from __future__ import annotations

import functools
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich
import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ppo1_lightning import cli, launch
from ppo1_lightning.checkpoint import check_same_run, entry_of, policy_entry, spaces_entry
from ppo1_lightning.data import RolloutDataModule
from ppo1_lightning.errors import ConfigurationError, check_choice
from ppo1_lightning.module import PPO
from ppo1_lightning.plan import Plan
from ppo1_lightning.policies import MlpPolicy

log = logging.getLogger("ppo1_lightning")

_YAML = {"None": "null", "True": "true", "False": "false"}


def main() -> None:
    """Run the command line: ``python -m ppo1_lightning env=pong``."""
    cli.run(train, "train")


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
    folder = Path(config.trainer.default_root_dir)
    cli.refuse_finished_run(folder, config.ckpt_path)
    data = RolloutDataModule(
        instantiate(config.env, _convert_="all"),
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        total_steps=config.total_steps,
        total_episodes=config.total_episodes,
        total_iterations=config.total_iterations,
        total_seconds=config.total_seconds,
        seed=config.seed,
    )
    policy = instantiate(config.policy, _convert_="all")
    module = instantiate(config.algo, policy=policy, _convert_="all")
    trainer = _make_trainer(config)
    launch.check_size(trainer)
    plan = Plan.create(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        minibatch_size=config.algo.minibatch_size,
        num_workers=config.num_workers,
        update_epochs=config.algo.update_epochs,
        devices=trainer.world_size,
    )
    identity = _identify(data, policy)
    if config.ckpt_path is not None:
        check_same_run(entry_of(read_checkpoint(config.ckpt_path)), identity)
    if launch.is_needed(trainer):
        return launch.run_ranks(config, trainer)
    if trainer.is_global_zero:
        _announce(config, plan.describe(data.budget), folder)
    with _few_threads(policy, speak=trainer.is_global_zero):
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    return _objective(module, config.optimized_metric)


def _objective(module: PPO, name: str) -> float | None:
    if not module.metrics:
        return None
    check_choice("optimized_metric", name, module.metrics)
    return module.metrics[name]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as plain data, so that nothing in it is imported or called.

    Raises:
        ConfigurationError: there is no such file, it is truncated or damaged, holds anything but
            plain data, or is not a checkpoint of a training run.
    """
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
    callbacks = [instantiate(node, _convert_="all") for node in _nodes(config, "callbacks")]
    # Lightning has both a switch and an object for each, and refuses a switch without its object
    if not config.trainer.enable_progress_bar:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    if not config.trainer.enable_checkpointing:
        callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
    loggers = [instantiate(node, _convert_="all") for node in _nodes(config, "logger")]
    return instantiate(
        config.trainer, callbacks=callbacks, logger=loggers or False, _convert_="all"
    )


def _nodes(config: DictConfig, group: str) -> list[DictConfig]:
    nodes = {name: node for name, node in (config.get(group) or {}).items() if node is not None}
    for name, node in nodes.items():
        if not isinstance(node, DictConfig):
            raise ConfigurationError(
                f"{group}.{name}={node} is not a config with a _target_; null leaves it out"
            )
    return list(nodes.values())


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
    hydra_folder.mkdir(parents=True, exist_ok=True)
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
