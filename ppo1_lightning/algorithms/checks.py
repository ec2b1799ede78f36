"""What is refused before the first step, or before an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import Space
from lightning import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
)
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

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
    if policy is not None:
        maker("policy", policy, "a policy from (observation_space, action_space)")
    return policy


def normalizes_nothing(policy: nn.Module) -> None:
    """Refuse a policy that normalises what is normalised already."""
    if getattr(policy, "observation_normalizer", None) is not None:
        raise ConfigurationError(
            f"algo.normalize_observations=true, and {type(policy).__name__} normalises them too; "
            "expected policy.normalize_observations=false, or false here"
        )


def acts_in_rollouts(cls: Any, base: Any) -> None:
    """Refuse an `act` of the user's that would act in evaluations and not in rollouts."""
    if cls.act is not base.act and cls.act_as_shown is base.act_as_shown:
        raise ConfigurationError(
            f"{cls.__name__} overrides act, and with algo.normalize_observations=true rollouts "
            "call act_as_shown, with normalised observations; expected an override of both"
        )


def maker(key: str, value: Any, makes: str) -> Any:
    """Return what makes something, such as a class."""
    if not callable(value):
        raise ConfigurationError(
            f"{key}={value!r} cannot be called, expected what makes {makes}, such as a class"
        )
    return value


def trainer(trainer: Trainer, module: OnPolicyModule) -> None:
    """Refuse what would train something else than was asked for, or would be ignored.

    Raises:
        ConfigurationError: it names the Trainer's argument, and what does the same here.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return
    if torch.is_inference_mode_enabled():
        raise ConfigurationError(
            "Trainer.fit within torch.inference_mode() cannot learn anything, expected it outside"
        )
    strategy = trainer.strategy
    launcher(strategy.launcher)
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigurationError(
            f"strategy {type(strategy).__name__} is not supported, "
            "expected a single device or DDP (trainer.strategy=auto or ddp)"
        )
    check_choice("trainer.precision", trainer.precision, ("32-true", "bf16-mixed"))
    if getattr(module, "_compiler_ctx", None) is not None:
        raise ConfigurationError(
            "torch.compile(module) would trace whole iterations, expected the module itself, "
            "whose compile=True compiles its minibatch steps"
        )
    if module.automatic_optimization:
        raise ConfigurationError(
            "automatic_optimization=True would take other steps than the algorithm's, "
            "expected False, as it was"
        )
    settings: Any = trainer  # it sets some where type checkers do not see it
    refused = [
        (f"callbacks: {type(callback).__name__}", isinstance(callback, kind), instead)
        for callback in settings.callbacks
        for kind, instead in _CALLBACKS.items()
    ]
    refused += [
        ("gradient_clip_val", trainer.gradient_clip_val, _NORM),
        ("gradient_clip_algorithm", trainer.gradient_clip_algorithm, _NORM),
        ("accumulate_grad_batches", trainer.accumulate_grad_batches != 1, _MINIBATCH),
        ("min_steps", (trainer.min_steps or 1) > 1, _BUDGET),
        ("min_epochs", (trainer.min_epochs or 1) > 1, _BUDGET),
        ("overfit_batches", settings.overfit_batches, "limit_train_batches: rollouts are new ones"),
    ]
    for name, is_given, instead in refused:
        if is_given:
            raise ConfigurationError(f"trainer.{name} has no meaning here, expected {instead}")


def launcher(launcher: Any) -> None:
    """Refuse what trains in processes that end with the fit."""
    if isinstance(launcher, _MultiProcessingLauncher):
        method = launcher._start_method
        name = {"fork": "'ddp_fork' or 'ddp_notebook'"}.get(method, f"'ddp_{method}'")
        raise ConfigurationError(
            f"strategy {name} leaves the trained policy in other "
            "processes, expected one device or strategy='ddp'"
        )


_NORM = "the module's max_grad_norm"
_MINIBATCH = "the module's minibatch_size: a batch of the Trainer is a whole iteration"
_BUDGET = "the data module's budget, such as total_steps: it says how long a run is"
_TUNE = "python -m ppo1_lightning tune (docs/configs.md)"
_CALLBACKS: dict[type, str] = {
    GradientAccumulationScheduler: _MINIBATCH,
    LearningRateFinder: _TUNE,
    BatchSizeFinder: _TUNE,
    ModelPruning: "torch.nn.utils.prune after training: it changes where layers have their weights",
    SpikeDetection: "ModelCheckpoint or EarlyStopping: it looks at a loss for each batch",
}
"""Lightning's that cannot do here what they are for, and what does."""


def optimizers(found: Any, trainer: Trainer) -> None:
    """Refuse several optimizers, one of nothing that learns, and schedulers that need a metric.

    Args:
        found: what `LightningModule.optimizers` returns.
    """
    if isinstance(found, list):
        raise ConfigurationError(
            f"configure_optimizers returned {len(found)} optimizers, expected one (with several "
            "parameter groups if need be), with schedulers or without"
        )
    optimizer = getattr(found, "optimizer", found)
    wanted = optimizer.defaults.keys() - {"differentiable"}  # which PyTorch adds when it loads
    for group in optimizer.param_groups:  # as a checkpoint has made them
        if missing := sorted(wanted - group.keys()):
            raise ConfigurationError(
                f"the checkpoint is from another optimizer: it says no {missing[0]}, which "
                f"{type(optimizer).__name__} goes by; expected the optimizer that it was "
                "saved with"
            )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(p.requires_grad for p in parameters):
        raise ConfigurationError(
            "all parameters are frozen, expected some that learn; module.unfreeze() thaws them"
        )
    for dtype in {p.dtype for p in parameters} & {torch.float16, torch.bfloat16}:
        raise ConfigurationError(
            f"there are parameters of {dtype}, expected torch.float32; "
            "trainer.precision=bf16-mixed learns in half precision"
        )
    if any(isinstance(c.scheduler, ReduceLROnPlateau) for c in trainer.lr_scheduler_configs):
        raise ConfigurationError(  # Lightning drops what it monitors
            "configure_optimizers returned a ReduceLROnPlateau, expected a scheduler that needs no "
            "metric; step that one in a callback, by a number of trainer.callback_metrics"
        )


def thawed(module: OnPolicyModule, optimizer: torch.optim.Optimizer) -> None:
    """Let parameters learn that were thawed since our own optimizer was made, as its first ones."""
    if optimizer is not module.own_optimizer:
        return  # the user says what is in theirs
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in module.learning_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            first = optimizer.param_groups[0]
            first["params"].append(parameter)
            if "param_names" in first:
                first["param_names"].append(name)


def unit_length(sequence_length: int | None, state_size: int, num_steps: int) -> int:
    """Return how many rows are shuffled together: 1, or for a policy with memory its sequences.

    Raises:
        ConfigurationError: a rollout in which a memory learns nothing, or sequences without one.
    """
    if not state_size:
        if sequence_length is not None:
            raise ConfigurationError(
                f"algo.sequence_length={sequence_length} is for policies with memory, such as "
                "policy=mlp_gru; expected null"
            )
        return 1
    if num_steps < 2:
        raise ConfigurationError(
            f"num_steps={num_steps} leaves a policy with memory nothing to learn from what was "
            "before, expected at least 2"
        )
    return num_steps if sequence_length is None else sequence_length


def data(module: OnPolicyModule, datamodule: Any) -> None:
    """Refuse sizes that do not divide, and environments that the policy is not made for."""
    if module.trainer.state.fn != TrainerFn.FITTING:
        return
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
