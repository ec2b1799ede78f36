"""The minibatch step: loss, gradient, sum over ranks, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ppo1_lightning.distributed import all_sum, world_size
from ppo1_lightning.optimizers import clip_factor
from ppo1_lightning.rollouts.segment import Minibatch

if TYPE_CHECKING:
    from ppo1_lightning.fast.compiler import Compiled


class Update(Protocol):
    """Takes one optimizer step for each of some minibatches.

    Attributes:
        path: "eager", "traced" or "compiled".
        compiled: whether a run's other graphs are; "kept": those of an earlier run are.
        max_grad_norm: largest norm of the gradient, None for no clipping.
        was_kept: whether an earlier run has left its graphs compiled on this machine.
    """

    path: str
    compiled: Compiled
    max_grad_norm: float | None

    @property
    def was_kept(self) -> bool: ...

    def __call__(self, minibatches: Minibatch) -> None:
        """Take the steps: fields are ``[M, B, ...]``."""
        ...

    def outdated(self, minibatches: Minibatch) -> str | None:
        """Return why it does not take these steps as the eager update would, None where it does."""
        ...

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return the context in which the policy is evaluated between the steps."""
        ...


class Objective(nn.Module):
    """A loss as a module around the one that it belongs to, whose tensors are its own.

    Args:
        module: what the loss reads parameters, buffers and attributes of.
        loss: from this rank's rows of a minibatch to its share of the loss, a scalar; or of
            several.
    """

    def __init__(self, module: nn.Module, loss: Callable[[Minibatch], Any]) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, *minibatch: Tensor) -> Any:
        """Return the loss of a minibatch's tensors ``[B, ...]``."""
        return self.loss(Minibatch(*minibatch))


class EagerUpdate:
    """The plain path: autograd, one flat all-reduce, any optimizer.

    ``max_grad_norm`` None leaves the gradient as it is.
    """

    path = "eager"
    compiled: Compiled = False
    was_kept = False

    def __init__(
        self,
        loss: Callable[[Minibatch], Tensor],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        self.loss, self.optimizer, self.max_grad_norm = loss, optimizer, max_grad_norm

    def __call__(self, minibatches: Minibatch) -> None:
        """Take the steps: fields are ``[M, B, ...]``."""
        for minibatch in map(Minibatch, *(field.unbind() for field in minibatches)):
            self._step(minibatch)

    def outdated(self, minibatches: Minibatch) -> str | None:
        """Return None: everything is read at each step."""
        return None

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return a context in which nothing is different."""
        return nullcontext()

    def _step(self, minibatch: Minibatch) -> None:
        parameters = learning(self.optimizer)  # anew: a callback may freeze some, or add a group
        # Not `backward`: DDP's hooks would average what is already the share of a global mean.
        gradients = torch.autograd.grad(
            self.loss(minibatch), parameters, allow_unused=True, materialize_grads=True
        )
        gradients = _all_sum(gradients)
        if self.max_grad_norm is not None:
            factor = clip_factor(gradients, self.max_grad_norm)
            gradients = [gradient * factor for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()


def learning(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters that an optimizer learns now."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _all_sum(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Sum tensors over ranks in one call."""
    if world_size() == 1:
        return tensors
    flat = all_sum(torch.cat([t.flatten() for t in tensors]))
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def give_own_memory(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Move parameters and moments out of flat vectors: where they lie decides how sums round."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
        state = optimizer.state.get(parameter, {})
        state.update({name: tensor.clone() for name, tensor in state.items()})
