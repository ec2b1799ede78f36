"""What a checkpoint says about a run besides weights, in plain containers only."""

from __future__ import annotations

import io
from contextvars import ContextVar
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import Space
from lightning.fabric.utilities.cloud_io import _load as pl_load
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ppo1_lightning.algorithms import loop
from ppo1_lightning.algorithms.as_made import is_as_made
from ppo1_lightning.algorithms.plain import plain, plain_settings
from ppo1_lightning.errors import ConfigurationError, one_line
from ppo1_lightning.policies import BUILT_IN
from ppo1_lightning.policies.base import PolicyFactory
from ppo1_lightning.policies.spaces import describe, restore
from ppo1_lightning.rollouts.budget import Counters

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.policy_module import PolicyModule

KEY = "ppo1_lightning"
"""Where the entry stands in a Lightning checkpoint."""


def policy_entry(policy: nn.Module, spaces: tuple[Space[Any], Space[Any]]) -> dict[str, Any]:
    """Describe a policy by name and arguments; where these do not make it again, by its name."""
    name = type(policy).__name__
    built_in = BUILT_IN.get(name) is type(policy) and is_as_made(policy, spaces)
    return {"name": name, "arguments": plain(policy.arguments) if built_in else None}


def spaces_entry(observation_space: Space[Any], action_space: Space[Any]) -> dict[str, Any]:
    """Describe the spaces of an environment."""
    return {"observation": describe(observation_space), "action": describe(action_space)}


def upgraded(checkpoint_path: Any, algorithm: str, *, weights_only: bool) -> Any:
    """Return a checkpoint, or where its hyperparameters are named as in 0.1 one with today's names.

    What it says of the optimizer is not kept: the caller passes another than the default.

    Raises:
        ConfigurationError: it is one of another algorithm.
    """
    content = pl_load(checkpoint_path, weights_only=weights_only)
    if hasattr(checkpoint_path, "seek"):
        checkpoint_path.seek(0)
    ours = content.get(KEY)
    saved = ours.get("algorithm", algorithm) if isinstance(ours, dict) else algorithm
    if saved != algorithm:
        raise ConfigurationError(
            f"the checkpoint is one of {saved}, expected one of {algorithm}; "
            f"{saved}.load_from_checkpoint loads it"
        )
    given = content.get("hyper_parameters", {})
    if "schedule" not in given:
        return checkpoint_path
    old = ("schedule", "anneal_clip", "optimizer", "adam_epsilon", "adam_epsilon_style")
    kept = {name: value for name, value in given.items() if name not in (*old, "num_workers")}
    annealed = ["learning_rate", "clip_coef"] if given["anneal_clip"] else ["learning_rate"]
    content["hyper_parameters"] = {
        **kept,
        "mpi_workers": given["num_workers"],
        "anneal": annealed if given["schedule"] == "linear" else [],
    }
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def identity(
    environment: str | None,
    spaces: tuple[Space[Any], Space[Any]],
    policy: nn.Module,
    algorithm: str,
    optimizer: str | None = None,
) -> dict[str, Any]:
    """Describe what a checkpoint has to agree with.

    Args:
        algorithm: name of its class, or of the one that a user's comes from.
        optimizer: name of its class, None where it is not known.
    """
    return {
        "environment": environment,
        "spaces": spaces_entry(*spaces),
        "policy": policy_entry(policy, spaces),
        "algorithm": algorithm,
        "optimizer": optimizer,
    }


def _optimizer_of(checkpoint: dict[str, Any]) -> str | None:
    """Return the name of a checkpoint's optimizer, for one of 0.1 as its hyperparameters say."""
    given = checkpoint.get("hyper_parameters", {})
    if not isinstance(given, dict) or "adam_epsilon_style" not in given:
        return checkpoint[KEY].get("optimizer")
    if given.get("optimizer") == "rmsprop":
        return "TensorFlowRMSprop"
    styles = {"tensorflow": "TensorFlowAdam", "torch": "Adam"}
    return styles.get(str(given["adam_epsilon_style"]))


def entry_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return our entry of a checkpoint.

    Raises:
        ConfigurationError: the checkpoint was not written by `PPO`.
    """
    if KEY not in checkpoint:
        raise ConfigurationError(
            "the checkpoint was not written by ppo1_lightning, "
            f"expected the entry {KEY!r} in it, found {', '.join(map(str, checkpoint))}"
        )
    entry = checkpoint[KEY]
    expected = {"spaces": dict, "policy": dict, "counters": dict, "episodes": list}
    damaged = [
        name
        for name, kind in expected.items()
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind)
    ]
    if not damaged and not isinstance(entry.get("wrapper_states", []), list):
        damaged = ["wrapper_states"]
    if not damaged and not all(map(_is_episode, entry["episodes"])):
        damaged = ["episodes"]
    counters = {field.name for field in fields(Counters)}
    if not damaged and (
        entry["counters"].keys() != counters
        or not all(_is_count(name, value) for name, value in entry["counters"].items())
    ):
        damaged = ["counters"]
    if damaged:
        raise ConfigurationError(
            f"the entry {KEY!r} of the checkpoint is damaged: no valid {', '.join(damaged)} in it"
        )
    return {**entry, "optimizer": _optimizer_of(checkpoint)}


def _is_count(name: str, value: Any) -> bool:
    """Whether it is a whole number, or those seconds that were counted."""
    return _is_number(value) and value >= 0 and (name == "seconds" or isinstance(value, int))


def _is_number(value: Any) -> bool:
    """Whether it is one that can be computed with in float64."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e308


def _is_episode(value: Any) -> bool:
    """Whether it is a pair: its return, and its length."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


STRICT: ContextVar[bool | None] = ContextVar("strict", default=None)
"""Whether all of a checkpoint's tensors have to be this module's; None: as the module says."""


def check_same_weights(
    checkpoint: dict[str, Any], current: dict[str, Any], *, strict: bool = True
) -> None:
    """Compare the names and shapes of a checkpoint's tensors with the current ones.

    Args:
        strict: as in `torch.nn.Module.load_state_dict`; False compares those that both have.

    Raises:
        ConfigurationError: some are missing, left over, of another shape or not finite.
    """
    saved = checkpoint.get("state_dict", {})
    for name in sorted(saved.keys() ^ current.keys()) if strict else ():
        raise ConfigurationError(
            f"the checkpoint does not fit: {name!r} is "
            + ("missing in it" if name in current else "in it, but not in this run")
        )
    for name, tensor in saved.items():
        if name not in current:
            continue
        if isinstance(tensor, Tensor) != isinstance(current[name], Tensor):
            raise ConfigurationError(
                f"the checkpoint does not fit: {name!r} is a {type(tensor).__name__}, "
                f"expected a {type(current[name]).__name__}"
            )
        if not isinstance(tensor, Tensor):
            continue
        if tensor.shape != current[name].shape:
            raise ConfigurationError(
                f"the checkpoint does not fit: {name!r} has the shape {tuple(tensor.shape)}, "
                f"expected {tuple(current[name].shape)}"
            )
        kinds = (tensor.dtype.is_floating_point, tensor.dtype.is_complex)
        if kinds != (current[name].dtype.is_floating_point, current[name].dtype.is_complex):
            raise ConfigurationError(
                f"the checkpoint does not fit: {name!r} is of {tensor.dtype}, expected "
                f"{current[name].dtype}"
            )
        if not tensor.isfinite().all():
            raise ConfigurationError(f"the checkpoint is damaged: {name!r} is not finite")


def policy_factory(entry: dict[str, Any]) -> PolicyFactory:
    """Return the maker of a built-in policy; nothing that a checkpoint names is ever imported.

    Raises:
        ConfigurationError: the policy is a user's own class.
    """
    name, arguments = entry["policy"]["name"], entry["policy"]["arguments"]
    if name not in BUILT_IN or arguments is None:
        changed = name in BUILT_IN
        why = "was changed after it was made" if changed else "is not built in"
        raise ConfigurationError(
            f"the checkpoint holds a policy of class {name}, which {why}: pass what makes it, "
            f"as in PPO.load_from_checkpoint(path, policy={'...' if changed else name})"
        )
    return partial(BUILT_IN[name], **arguments)


def restore_spaces(entry: dict[str, Any]) -> tuple[Space[Any], Space[Any]]:
    """Return the observation and action space of a checkpoint.

    Raises:
        ConfigurationError: it does not describe any.
    """
    try:
        return restore(entry["spaces"]["observation"]), restore(entry["spaces"]["action"])
    except (KeyError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the checkpoint is damaged: its spaces cannot be made ({one_line(error)})"
        ) from error


def check_same_run(entry: dict[str, Any], current: dict[str, Any]) -> None:
    """Compare what a checkpoint and the current run say about environment, spaces and policy.

    Raises:
        ConfigurationError: they differ in one of them.
    """
    for key in ("environment", "spaces", "algorithm", "policy", "optimizer"):
        saved, ours = entry.get(key), current.get(key)
        if saved != ours and None not in (saved, ours):
            raise ConfigurationError(
                f"the checkpoint is from another {key.removesuffix('s')}: "
                f"it was saved with {saved}, this run has {ours}"
            )


def write(checkpoint: dict[str, Any], module: PolicyModule) -> None:
    """Add our entry to a checkpoint that Lightning has made of a module."""
    module.ask_wrappers()
    checkpoint[KEY] = {
        **module.identity(),
        "counters": module.counters.state_dict(),
        "episodes": module.episodes.state_dict(),
        "owes_evaluation": loop.evaluation_is_due(module),
        "wrapper_states": module.wrapper_states,
    }
    for states in ("optimizer_states", "lr_schedulers"):
        if states in checkpoint:
            checkpoint[states] = list(map(plain_settings, checkpoint[states]))


def restore_run(checkpoint: dict[str, Any], module: PolicyModule) -> None:
    """Restore a module's counters from a checkpoint, and build its policy where there is none.

    Raises:
        ConfigurationError: the checkpoint does not fit.
    """
    saved = entry_of(checkpoint)
    trainer = module._trainer
    if trainer is None or trainer.state.fn != TrainerFn.FITTING:
        saved["optimizer"] = None  # of no use here
    if not hasattr(module, "policy"):
        module.policy_factory = module.policy_factory or policy_factory(saved)
        module.build_policy(*(module.spaces if module.knows_spaces else restore_spaces(saved)))
    check_same_run(saved, module.identity())
    strict = module.strict_loading if STRICT.get() is None else bool(STRICT.get())
    check_same_weights(checkpoint, module.state_dict(), strict=strict)
    if trainer is not None and not checkpoint.get("optimizer_states"):
        raise ConfigurationError(
            "the checkpoint holds no optimizer state, so a run cannot be resumed from it"
        )
    module.counters = Counters(**saved["counters"])
    module.episodes.load_state_dict(saved["episodes"])
    module.wrapper_states = saved.get("wrapper_states", [])
    module.owes_evaluation = saved.get("owes_evaluation", False)
