"""The original's initialisation."""

from __future__ import annotations

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
def convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """Make an unpadded convolution with Glorot-uniform weights (``U.conv2d``), bias 0."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride)
    nn.init.xavier_uniform_(layer.weight)
    cast(Tensor, layer.bias).zero_()
    return layer
