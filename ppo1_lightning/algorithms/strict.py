"""A LightningModule that ignores nothing of what is asked of it before its hooks are called."""

from __future__ import annotations

import inspect
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning import LightningModule
from torch import nn

from ppo1_lightning.algorithms import hooks, plain
from ppo1_lightning.errors import ConfigurationError


class StrictModule(LightningModule):
    """Hyperparameters as plain data, hooks that run, no parameters before there are any.

    Attributes:
        seed: kept among the hyperparameters.
        hooks_run: see `hooks.own`.
    """

    seed: int

    def __init__(self) -> None:
        super().__init__()
        self.hooks_run: Counter[str] = Counter()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hooks.complete_overrides(cls)
        hooks.refuse_overrides(cls)

    def save_hyperparameters(  # type: ignore[override]
        self, *args: Any, ignore: Any = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Keep the arguments as Lightning does, as plain data and without policy and spaces.

        Raises:
            ConfigurationError: one is an object that a checkpoint cannot hold.
        """
        ignored = [ignore] if isinstance(ignore, str) else list(ignore or ())
        caller = inspect.currentframe()
        super().save_hyperparameters(
            *args,
            ignore=[*ignored, "policy", "optimizer", "observation_space", "action_space"],
            frame=frame or (caller and caller.f_back),
            logger=logger,
        )
        self.hparams.update(plain.hyperparameters({**self.hparams, "seed": self.seed}))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return them; an optimizer, a count, `freeze` of none would say or do nothing.

        Raises:
            ConfigurationError: the policy is not there yet.
        """
        # In processes that it starts Lightning asks before any hook: none is the right answer.
        if not hasattr(self, "policy") and multiprocessing.parent_process() is None:
            name = type(self).__name__
            raise ConfigurationError(
                f"{name} has no parameters before it knows the spaces: they come with a Trainer's "
                f"first hook, or at once from {name}(..., observation_space=data.spaces[0], "
                "action_space=data.spaces[1])"
            )
        return super().named_parameters(*args, **kwargs)
