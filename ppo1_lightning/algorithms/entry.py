"""What a checkpoint says about a run besides weights, in plain containers only; how it is read."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from gymnasium import Space
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _load as pl_load
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from ppo1_lightning.algorithms.plain import plain
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies import BUILT_IN
from ppo1_lightning.policies.base import PolicyFactory
from ppo1_lightning.policies.spaces import describe, example_rows, restore
from ppo1_lightning.rollouts.budget import Counters

KEY = "ppo1_lightning"
"""Where the entry stands in a Lightning checkpoint."""


def read_checkpoint(path: str | Path, key: str = "ckpt_path") -> dict[str, Any]:
    """Read a checkpoint as plain data, so that nothing in it is imported or called.

    Args:
        path: the file.
        key: what to call it in messages.

    Raises:
        ConfigurationError: there is no such file, it is truncated or damaged, holds anything but
            plain data, or is not a checkpoint of a training run.
    """
    if not isinstance(path, str | Path):
        raise ConfigurationError(f"{key}={path!r} is not the path of a file")
    if "://" in str(path):
        raise ConfigurationError(f"{key}={path} is an address, expected a file: download it")
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigurationError(f"{key}={path} {what}, expected a file such as last.ckpt")
    try:
        with file.open("rb") as stream:  # once: another rank may rename it
            content = torch.load(stream, map_location="cpu", weights_only=True)
            damaged = _damaged_part(stream)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{key}={path} is damaged or holds more than plain data, expected a checkpoint "
            "of this package; nothing in it was run"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise ConfigurationError(
            f"{key}={path} is truncated or damaged, expected a whole checkpoint"
        ) from error
    if damaged is not None:
        raise ConfigurationError(f"{key}={path} is damaged: {damaged} in it has changed")
    if not isinstance(content, dict) or not {"state_dict", "loops"} <= content.keys():
        raise ConfigurationError(f"{key}={path} is not a checkpoint of a training run")
    return content


def _damaged_part(stream: IO[bytes]) -> str | None:
    """Return the first part whose checksum is wrong; `torch.load` does not look at them."""
    if not zipfile.is_zipfile(stream):
        return None
    with zipfile.ZipFile(stream) as archive:
        return archive.testzip()


class PlainDataIO(TorchCheckpointIO):
    """Reads checkpoints with ``weights_only=True``, from a URL too, unless told otherwise.

    Lightning itself reads from an http address whatever is there, and so runs what it says.
    """

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint; ``weights_only=False`` only for one you trust."""
        weights_only = True if weights_only is None else weights_only
        return super().load_checkpoint(path, map_location, weights_only)


def read_plain_data(strategy: Strategy) -> None:
    """Let a Trainer's strategy read with `PlainDataIO`; a plugin of the user's stays."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = PlainDataIO()


def policy_entry(policy: nn.Module, spaces: tuple[Space[Any], Space[Any]]) -> dict[str, Any]:
    """Describe a policy by name and arguments; where these do not make it again, by its name."""
    name = type(policy).__name__
    built_in = BUILT_IN.get(name) is type(policy) and _is_as_made(policy, spaces)
    return {"name": name, "arguments": plain(policy.arguments) if built_in else None}


@torch.no_grad()
def _is_as_made(policy: nn.Module, spaces: tuple[Space[Any], Space[Any]]) -> bool:
    """Whether a built-in policy is what its arguments make: it may have been changed since."""
    with torch.random.fork_rng(devices=[]):
        again = type(policy)(*spaces, **policy.arguments).eval()  # type: ignore[operator]
        rows = example_rows(spaces[0], 8)
        rows = rows.random_() if rows.dtype == torch.uint8 else rows.normal_()
    weights, same_weights = policy.state_dict(), again.state_dict()
    if str(again) != str(policy) or weights.keys() != same_weights.keys():
        return False
    again.load_state_dict(weights)
    device = next(policy.parameters()).device
    ours, made = (p(rows.to(device), None)[:2] for p in (policy, again.to(device)))
    return all(map(torch.equal, ours, made))


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
    if "adam_epsilon_style" not in given:
        return checkpoint[KEY].get("optimizer")
    if given["optimizer"] == "rmsprop":
        return "TensorFlowRMSprop"
    return {"tensorflow": "TensorFlowAdam", "torch": "Adam"}[given["adam_epsilon_style"]]


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
    counters = {field.name for field in fields(Counters)}
    if not damaged and (
        entry["counters"].keys() != counters or not all(map(_is_count, entry["counters"].values()))
    ):
        damaged = ["counters"]
    if damaged:
        raise ConfigurationError(
            f"the entry {KEY!r} of the checkpoint is damaged: no valid {', '.join(damaged)} in it"
        )
    return {**entry, "optimizer": _optimizer_of(checkpoint)}


def _is_count(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def check_same_weights(checkpoint: dict[str, Any], current: dict[str, Any]) -> None:
    """Compare the names and shapes of a checkpoint's tensors with the current ones.

    Raises:
        ConfigurationError: some are missing, left over, of another shape or not finite.
    """
    saved = checkpoint.get("state_dict", {})
    for name in sorted(saved.keys() ^ current.keys()):
        raise ConfigurationError(
            f"the checkpoint does not fit: {name!r} is "
            + ("missing in it" if name in current else "in it, but not in this run")
        )
    for name, tensor in saved.items():
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
        if not tensor.isfinite().all():
            raise ConfigurationError(f"the checkpoint is damaged: {name!r} is not finite")


def policy_factory(entry: dict[str, Any]) -> PolicyFactory:
    """Return the maker of a built-in policy; nothing that a checkpoint names is ever imported.

    Raises:
        ConfigurationError: the policy is a user's own class.
    """
    name, arguments = entry["policy"]["name"], entry["policy"]["arguments"]
    if name not in BUILT_IN or arguments is None:
        why = "was changed after it was made" if name in BUILT_IN else "is not built in"
        raise ConfigurationError(
            f"the checkpoint holds a policy of class {name}, which {why}: "
            "pass what makes it, as in PPO.load_from_checkpoint(path, policy=...)"
        )
    return partial(BUILT_IN[name], **arguments)


def restore_spaces(entry: dict[str, Any]) -> tuple[Space[Any], Space[Any]]:
    """Return the observation and action space of a checkpoint."""
    return restore(entry["spaces"]["observation"]), restore(entry["spaces"]["action"])


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
