"""What is refused before the first step, or before an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gymnasium import Space
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from ppo1_lightning.errors import ConfigurationError, check_choice, check_number
from ppo1_lightning.policies.base import PolicyFactory
from ppo1_lightning.policies.spaces import describe, name_of
from ppo1_lightning.rollouts.budget import Counters
from ppo1_lightning.rollouts.collector import Rollout

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.on_policy import OnPolicyModule

Spaces = tuple[Space[Any], Space[Any]]
"""Observation and action space."""


def limit(key: str, value: float | None) -> float | None:
    """Return a positive number, or None for no limit."""
    return None if value is None else check_number(key, value, above=0)


def names(key: str, value: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return a sequence of some of the known names."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{key}={value!r} is not a list of names, such as [{known[0]}]")
    for name in value:
        check_choice(key, name, known)
    return tuple(value)


def policy_factory(policy: PolicyFactory | None) -> PolicyFactory | None:
    """Return what makes a policy, None where a checkpoint is to tell."""
    if isinstance(policy, nn.Module):
        raise ConfigurationError(
            f"policy is a {type(policy).__name__} already made, expected what makes one from "
            f"(observation_space, action_space), such as the class {type(policy).__name__}"
        )
    return policy


def normalizes_nothing(policy: nn.Module) -> None:
    """Refuse a policy that normalises what is normalised already."""
    if getattr(policy, "observation_normalizer", None) is not None:
        raise ConfigurationError(
            f"algo.normalize_observations=true, and {type(policy).__name__} normalises them too; "
            "expected policy.normalize_observations=false, or false here"
        )


def trainer(trainer: Trainer) -> None:
    """Refuse a strategy or a precision that would train something else."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigurationError(
            f"strategy {type(trainer.strategy).__name__} is not supported, "
            "expected a single device or DDP (trainer.strategy=auto or ddp)"
        )
    check_choice("trainer.precision", trainer.precision, ("32-true", "bf16-mixed"))


def data(module: OnPolicyModule, datamodule: Any) -> None:
    """Refuse sizes that do not divide, and environments that the policy is not made for."""
    if hasattr(datamodule, "num_envs") and hasattr(datamodule, "num_steps"):
        module.sizes(datamodule.num_envs, datamodule.num_steps)
    if module.knows_spaces and hasattr(datamodule, "spaces"):
        same_spaces(module.spaces, datamodule.spaces)


def same_spaces(ours: Spaces, theirs: Spaces) -> None:
    """Refuse an environment whose spaces are not those that the policy is made for."""
    for kind, own, other in zip(("observation", "action"), ours, theirs, strict=True):
        if describe(own) != describe(other):
            raise ConfigurationError(
                f"the policy is made for the {kind} space {name_of(own)}, "
                f"the environment has {name_of(other)}"
            )


def spaces_of(datamodule: Any) -> Spaces:
    """Return the spaces that a data module tells."""
    spaces = getattr(datamodule, "spaces", None)
    if spaces is None:
        raise ConfigurationError(
            "the module does not know the spaces: fit it with a RolloutDataModule "
            "or pass observation_space and action_space"
        )
    return spaces


def on_policy(rollout: Rollout, counters: Counters) -> None:
    """Refuse data of an older policy, which prefetching would bring."""
    if rollout.policy_version != counters.iterations:
        raise RuntimeError(
            f"the rollout was collected after {rollout.policy_version} updates, the policy has "
            f"had {counters.iterations}: the data must not be fetched ahead "
            "(give the dataset a __len__, or limit_train_batches an integer)"
        )
