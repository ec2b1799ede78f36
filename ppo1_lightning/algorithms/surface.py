"""Gain and KL divergence around the old policy, as far as a trust region step looks at them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ppo1_lightning.algorithms.flat import FlatParameters
from ppo1_lightning.algorithms.update import Objective
from ppo1_lightning.distributed import all_sum
from ppo1_lightning.policies.memory import Memory
from ppo1_lightning.rollouts.segment import Minibatch

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.trpo import TRPO

_log = logging.getLogger(__name__)


class Surface(Protocol):
    """Gain and KL of some rows, this rank's shares, for the parameters as they are when asked."""

    def gain_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gain, a scalar, and its gradient ``[P]``."""
        ...

    def hessian(self) -> Callable[[Tensor], Tensor]:
        """Return what multiplies a vector ``[P]`` by the KL's Hessian at the old policy.

        For as long as the parameters are as they were.
        """
        ...

    def gain_and_kl(self) -> Tensor:
        """Return both: ``[2]``."""
        ...


class Surfaces(Protocol):
    """Makes a `Surface` for each two minibatches that are laid out as the first ones."""

    def __call__(self, batch: Minibatch, fisher_batch: Minibatch) -> Surface:
        """Return what gain and KL are for these rows, see `TRPO.improve_policy`."""
        ...

    def outdated(self) -> str | None:
        """Return the name of something that it goes by as it was before, None where it does not."""
        ...


class EagerSurface:
    """By autograd."""

    def __init__(
        self,
        gain_and_kl: Callable[[Minibatch], tuple[Tensor, Tensor]],
        parameters: FlatParameters,
        batch: Minibatch,
        fisher_batch: Minibatch,
    ) -> None:
        self._gain_and_kl, self._parameters = gain_and_kl, parameters
        self._batch, self._fisher_batch = batch, fisher_batch

    def gain_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gain, a scalar, and its gradient ``[P]``."""
        gain, _ = self._gain_and_kl(self._batch)
        return gain.detach(), self._parameters.gradient(gain)

    def hessian(self) -> Callable[[Tensor], Tensor]:
        """Return what multiplies a vector ``[P]`` by the KL's Hessian at the old policy."""
        return self._parameters.hessian(self._gain_and_kl(self._fisher_batch)[1])

    @torch.no_grad()
    def gain_and_kl(self) -> Tensor:
        """Return both: ``[2]``."""
        return torch.stack(self._gain_and_kl(self._batch))


class SummedSurface:
    """The same over all ranks."""

    def __init__(self, share: Surface) -> None:
        self._share = share

    def gain_and_gradient(self) -> tuple[float, Tensor]:
        """Return the gain and its gradient ``[P]``."""
        gain, gradient = self._share.gain_and_gradient()
        return all_sum(gain.clone()).item(), all_sum(gradient)

    def hessian(self) -> Callable[[Tensor], Tensor]:
        """Return what multiplies a vector ``[P]`` by the KL's Hessian at the old policy."""
        product = self._share.hessian()
        return lambda vector: all_sum(product(vector))

    def gain_and_kl(self) -> tuple[float, float]:
        """Return both."""
        gain, kl = all_sum(self._share.gain_and_kl()).tolist()
        return gain, kl


def make_graphs(
    module: TRPO, parameters: FlatParameters, batch: Minibatch, fisher_batch: Minibatch
) -> Surfaces | None:
    """Return surfaces by graphs, where the module's update goes by them; None for eager ones."""
    update = module._update
    if update is None or update.path == "eager":
        return None
    if any(isinstance(part, Memory) for part in module.policy.modules()):
        _log.info("policy step: eager (a memory's operator has no second derivative)")
        return None
    from ppo1_lightning import fast

    objective = Objective(module, module.gain_and_kl)
    eager = EagerSurface(module.gain_and_kl, parameters, batch, fisher_batch)
    batches = batch, fisher_batch
    started = time.perf_counter()
    graphs, reason = fast.make_surfaces(
        objective,
        parameters.parameters,
        eager,
        batches,
        compiled=update.compiled,
        was_kept=update.was_kept,
    )
    if graphs is None:
        _log.warning("policy step: eager: %s", reason)
    else:
        seconds = time.perf_counter() - started
        rank_zero_only(_log.info)("policy step: %s in %.1f s", update.path, seconds)
    return graphs
