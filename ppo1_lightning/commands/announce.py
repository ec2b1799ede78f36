"""What a run prints of itself: config and plan when it starts, where everything is when it ends."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ppo1_lightning.policies.cnn import images_of
from ppo1_lightning.policies.spaces import name_of
from ppo1_lightning.rollouts.evaluation import mean_interval
from ppo1_lightning.runs import resume
from ppo1_lightning.runs.files import replacing
from ppo1_lightning.runs.untrusted import foreign_calls, printable
from ppo1_lightning.simulators.actions import ActionAdapter
from ppo1_lightning.simulators.observations import ObservationAdapter

log = logging.getLogger("ppo1_lightning")

_YAML = {"None": "null", "True": "true", "False": "false"}


def announce(config: DictConfig, plan: Mapping[str, str], folder: Path) -> None:
    """Print the resolved config and the plan, and save both with the run."""
    resolved = OmegaConf.to_container(config, resolve=True)
    with replacing(folder / ".hydra" / "resolved.yaml", make_folder=True) as new:
        OmegaConf.save(OmegaConf.create(resolved), new)
    tree = Tree("config", guide_style="dim")
    _grow(tree, resolved)
    table = Table("plan", "", show_edge=False, box=None)
    for name, value in plan.items():
        table.add_row(name, Text(value))
    for content, file in ((tree, "config_tree.txt"), (table, "plan.txt")):
        rich.print(content)
        with replacing(folder / file) as new, new.open("w", encoding="utf-8") as stream:
            Console(file=stream, width=200).print(content)


def _grow(tree: Tree, value: Any) -> None:
    for key, child in value.items():
        if isinstance(child, dict) and child:
            _grow(tree.add(Text(printable(str(key)), style="bold")), child)
        else:
            line = printable(f"{key}: {_YAML.get(str(child), child)}")
            tree.add(Text(line, no_wrap=True, overflow="fold"))


LARGE_PICTURE = 128 * 128
"""Pixels above which a picture is hardly what somebody wanted to train on."""


def interface(
    observation: ObservationAdapter, action: ActionAdapter, policy: object
) -> dict[str, str]:
    """Return what the policy sees and does, for the plan, and warn of what may surprise."""
    if observation.left_out:
        log.warning(
            "not numbers, so left out of the observations: %s; env.observation_keys=[...] says "
            "what to use",
            ", ".join(observation.left_out),
        )
    if observation.no_masks:
        log.warning(
            "learned from, and no masks: %s; expected one action_mask, or a Tuple of one for each "
            "number of a MultiDiscrete",
            ", ".join(observation.no_masks),
        )
    for part in images_of(observation.space).values():
        if part.space.dtype != np.uint8 and np.abs([part.space.low, part.space.high]).max() > 1:
            log.warning(
                "the policy learns from pictures of floats without bounds as they are, expected "
                "numbers about 1; env.wrappers may scale them"
            )
        if math.prod(shape := part.space.shape) // min(shape) > LARGE_PICTURE:
            log.warning(
                "the policy learns from pictures of %s as they are; most are preprocessed to about "
                "84 x 84: env=atari and env=atari_gymnasium do that for Atari, env.wrappers for "
                "Gymnasium's others",
                " x ".join(map(str, shape)),
            )
    scaled = "" if action.factor is None else ", -1 and 1 stand for its bounds"
    return {
        "observations": name_of(observation.space),
        "actions": name_of(action.native) + scaled,
        "policy": type(policy).__name__,
    }


def tell_what_next(
    folder: Path, here: Path, config: DictConfig, returns: Sequence[float], best_score: float
) -> None:
    """Say what the run came to, where it is, and what to do with it.

    Args:
        folder: of the run.
        here: where it was started; an environment may have gone elsewhere since.
        config: of the run.
        returns: of its last episodes.
        best_score: of ``best.ckpt``; not finite where there is none.
    """
    if len(returns) > 1:
        low, high = mean_interval(np.asarray(returns))
        told = "return %.2f (95 %% interval %.2f to %.2f) of the last %d episodes"
        log.info(told, np.mean(returns), low, high, len(returns))
    checkpoints = resume.checkpoint_folder(config, folder)
    if not (checkpoints / "last.ckpt").is_file():
        return
    if math.isfinite(best_score) and (checkpoints / "best.ckpt").is_file():
        log.info("best.ckpt: %s %.2f", config.callbacks.checkpoint.monitor, best_score)
    place = str(folder.relative_to(here) if here in folder.parents else folder)
    run = shlex.quote(f"run={place}")
    if foreign_calls(config, folder):
        run += " trust=true"
    has_rows = (folder / "csv" / "metrics.csv").is_file()
    report = f"; report {shlex.quote(place)}" if has_rows else ""
    log.info(
        "everything is in %s; next: python -m ppo1_lightning evaluate %s (or record, play %s%s)",
        shlex.quote(place),
        run,
        run,
        report,
    )
