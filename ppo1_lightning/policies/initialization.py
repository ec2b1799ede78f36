"""How weights start: as in the original, or orthogonal as in ppo2."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn


@torch.no_grad()
def linear(in_features: int, out_features: int, *, scale: float) -> nn.Linear:
    """Make a linear layer whose rows have norm ``scale`` (``U.normc_initializer``), bias 0."""
    layer = nn.Linear(in_features, out_features)
    layer.weight.normal_()
    layer.weight.mul_(scale / layer.weight.norm(dim=1, keepdim=True))
    layer.bias.zero_()
    return layer


@torch.no_grad()
def convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, padding: int = 0
) -> nn.Conv2d:
    """Make a convolution with Glorot-uniform weights (``U.conv2d``), bias 0."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
    nn.init.xavier_uniform_(layer.weight)
    cast(Tensor, layer.bias).zero_()
    return layer


def orthogonal(module: nn.Module, gain: float = math.sqrt(2)) -> None:
    """Start the layers of ``module`` anew: orthogonal weights times ``gain``, bias 0.

    As baselines' ``a2c/utils.py`` (``ortho_init``) does for ppo2. Features are several times larger
    than with the original's weights.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(cast(Tensor, layer.bias))
