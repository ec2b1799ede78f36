"""A LightningModule that ignores nothing of what is asked of it before its hooks are called."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning import LightningModule
from torch import nn

from ppo1_lightning.algorithms import checks, hooks, plain
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
        if not hasattr(self, "policy"):
            name = type(self).__name__
            raise ConfigurationError(
                f"{name} has no parameters before it knows the spaces: they come with a Trainer's "
                f"first hook, or at once from {name}(..., observation_space=data.spaces[0], "
                "action_space=data.spaces[1])"
            )
        return super().named_parameters(*args, **kwargs)

    @property
    def _compiler_ctx(self) -> dict[str, Any] | None:
        """What `torch.compile` keeps in a LightningModule.

        `Trainer.fit` looks at it, and at nothing else of a module, before it starts processes: in
        these a refusal would be the end of a long traceback.
        """
        caller = inspect.currentframe()
        caller = caller and caller.f_back
        if caller and caller.f_back and caller.f_back.f_code.co_name == "fit":
            checks.launcher(getattr(caller.f_locals.get("strategy"), "launcher", None))
        return self.__dict__.get("compiler_context")

    @_compiler_ctx.setter
    def _compiler_ctx(self, context: dict[str, Any] | None) -> None:  # type: ignore[override]
        self.__dict__["compiler_context"] = context
