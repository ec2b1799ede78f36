"""Some parameters of a module as one vector, and the derivatives with respect to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies.base import separate_parameters
from ppo1_lightning.policies.spaces import example_rows


class FlatParameters:
    """Parameters, end to end, as one vector ``[P]``; they stay where they are in memory.

    Args:
        parameters: in the vector's order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)

    @torch.no_grad()
    def get(self) -> Tensor:
        """Return a copy of the parameters: ``[P]``."""
        return _flat(self.parameters)

    @torch.no_grad()
    def set(self, vector: Tensor) -> None:
        """Copy ``vector [P]`` into the parameters."""
        parts = vector.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))

    def gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient of a loss: ``[P]``, 0 for what it does not depend on."""
        return self._gradient(loss, retain_graph=True).detach()

    def hessian(self, loss: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what multiplies a vector ``[P]`` by the Hessian of a loss.

        A product is the gradient of slope . vector. The slope's graph is made once and kept, and
        refuses products once a parameter has changed. Of a KL divergence at its minimum J^T H J of
        the policy's Jacobian J is the same matrix; for an MLP on the CPU its products, with J v
        in reverse mode, were no faster with the same H, and in forward mode took 1.8 times as long.
        """
        slope = self._gradient(loss, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            return self._gradient(slope @ vector, retain_graph=True)

        return product

    def _gradient(
        self, loss: Tensor, *, create_graph: bool = False, retain_graph: bool | None = None
    ) -> Tensor:
        gradients = torch.autograd.grad(
            loss,
            self.parameters,
            create_graph=create_graph,
            retain_graph=retain_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return _flat(gradients)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    # Not `parameters_to_vector`: a convolution's gradient may lie in another order than it is read.
    return torch.cat([tensor.flatten() for tensor in tensors])


def acting_and_valuing(
    policy: nn.Module, observation_space: Space[Any]
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return a policy's named parameters that choose actions, and those that estimate values.

    Raises:
        ConfigurationError: some do both, or neither.
    """
    named = dict(policy.named_parameters())
    device = next(iter(named.values())).device
    parts = separate_parameters(policy, example_rows(observation_space, 1).to(device))
    if parts is None:
        raise ConfigurationError(
            f"choice of actions and value function of the {type(policy).__name__} cannot be taught "
            "apart: they share parameters, or there are some that neither uses; expected networks "
            "of their own, such as policy.shared_trunk=false, or policy=cnn_separate for images"
        )
    acting, valuing = ({name: named[name] for name in names} for names in parts)
    return acting, valuing
