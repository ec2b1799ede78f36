"""Numbers that a loss reads and that may change in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.on_policy import OnPolicyModule


class Coefficients(nn.Module):
    """Numbers as 0-d buffers, so that a traced or compiled loss sees them change.

    They are in no checkpoint: each iteration begins with their values anew, see `anneal`.

    Attributes:
        values: the numbers themselves.
    """

    values: dict[str, float]

    @torch.inference_mode(False)  # they are written in place later
    def __init__(self, **values: float) -> None:
        super().__init__()
        self.values = values
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    def put(self, name: str, value: float) -> None:
        """Change one of them."""
        self.values[name] = value
        getattr(self, name).fill_(value)

    def __getattr__(self, name: str) -> Tensor:  # all that this module holds are tensors
        return super().__getattr__(name)  # type: ignore[return-value]


def anneal(module: OnPolicyModule, optimizer: torch.optim.Optimizer, fraction_spent: float) -> None:
    """Put an iteration's values where the loss and the optimizer read them.

    Args:
        module: its attributes are what is not annealed, and what a callback may change.
        fraction_spent: of the budget; what is annealed has gone so far towards 0.
        optimizer: one of the user's own keeps its learning rates, unless ``anneal`` asks for them.
    """
    left = max(1.0 - fraction_spent, 0.0)  # the original's ``lrmult``
    for name in module.now.values:
        if (value := getattr(module, name)) is not None:
            module.now.put(name, value * (left if name in module.anneal else 1.0))
    annealed = "learning_rate" in module.anneal
    for group in optimizer.param_groups:
        if _is_as_asked(module, optimizer):
            group["lr"] = module.learning_rate * (left if annealed else 1.0)
        elif annealed:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * left


def take_as_asked(module: OnPolicyModule, optimizer: torch.optim.Optimizer) -> None:
    """Let what a resumed run asks of its optimizer, epsilon say, hold and not the checkpoint's."""
    if _is_as_asked(module, optimizer):
        optimizer.param_groups[0].update(optimizer.defaults)


def _is_as_asked(module: OnPolicyModule, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the module's arguments say all; several groups have settings of their own."""
    return optimizer is module.own_optimizer and len(optimizer.param_groups) == 1
