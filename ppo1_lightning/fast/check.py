"""What no graph can do, and whether one computes what it was traced from: before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.fast.graphs import ModuleCall
from ppo1_lightning.fast.steps import step_of


def unsupported(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why no graph takes this optimizer's steps, None where one can."""
    if step_of(optimizer) is None:
        kinds = "Adam and TensorFlowRMSprop"
        return f"supports {kinds} only, not {type(optimizer).__name__}"
    if len(optimizer.param_groups) != 1:
        return "supports one parameter group only"
    group = optimizer.param_groups[0]
    if any(group.get(name) for name in ("weight_decay", "amsgrad", "maximize")):
        return "supports Adam without weight_decay, amsgrad and maximize only"
    if any(p.dtype != torch.float32 or not p.requires_grad for p in group["params"]):
        return "supports float32 parameters only, none of them frozen"
    return None


def traced_settings(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return what of an optimizer graphs have in them, and so would not see change."""
    step, groups = step_of(optimizer), optimizer.param_groups
    names = () if step is None else step.settings
    return [(list(map(id, g["params"])), *(g.get(name) for name in names)) for g in groups]


@contextmanager
def buffers_unchanged(call: ModuleCall) -> Iterator[None]:
    """Refuse a module that changes its buffers when it is called: a graph would not.

    Raises:
        ConfigurationError: it did; they are as they were before.
    """
    before = [tensor.clone() for tensor in call.others()]
    changed = False
    try:
        yield
    finally:
        for tensor, as_it_was in zip(call.others(), before, strict=True):
            if not torch.equal(tensor, as_it_was):
                changed = True
                tensor.copy_(as_it_was)
    if changed:
        raise ConfigurationError(
            "the policy changes its buffers when it is called, expected a pure function of its "
            "arguments, parameters and buffers"
        )


def compare_gradients(
    names: Sequence[str], gradients: Sequence[Tensor], eager: Sequence[Tensor]
) -> None:
    """Compare each parameter's gradient with the eager one, relative to its own norm.

    Raises:
        ConfigurationError: one differs, as for a policy that draws random numbers; it is named.
    """
    # Half precision rounds where operators end, and a compiled graph has fewer of them.
    tolerance = 0.1 if torch.is_autocast_enabled(eager[0].device.type) else 1e-3
    whole = torch.stack([gradient.norm() for gradient in eager]).norm()
    floor = 1e-6 * whole + 1e-7  # for sums that cancel out
    for name, gradient, expected in zip(names, gradients, eager, strict=True):
        error, scale = (gradient - expected).norm(), expected.norm()
        if not error <= tolerance * scale + floor:  # also where it is no number
            raise ConfigurationError(
                f"its gradient is not the eager one: that of {name} differs by {error:.2g}, "
                f"its norm is {scale:.2g}; expected a pure function of its arguments, "
                "parameters and buffers"
            )
