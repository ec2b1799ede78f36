"""The convolutional networks of ``ppo1/cnn_policy.py`` and ``ppo1/nosharing_cnn_policy.py``."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from gymnasium import Space
from gymnasium.spaces import Box
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError, check_choice
from ppo1_lightning.policies.base import ActorCritic
from ppo1_lightning.policies.initialization import convolution, linear
from ppo1_lightning.spaces import name_of


class _Convolution(NamedTuple):
    channels: int
    kernel: int
    stride: int


class _Architecture(NamedTuple):
    convolutions: list[_Convolution]
    num_features: int


ARCHITECTURES = {
    # Mnih et al. 2016, A3C
    "small": _Architecture([_Convolution(16, 8, 4), _Convolution(32, 4, 2)], 256),
    # Mnih et al. 2015, Nature DQN
    "large": _Architecture(
        [_Convolution(32, 8, 4), _Convolution(64, 4, 2), _Convolution(64, 3, 1)], 512
    ),
    # Half of "small", for each of the two trunks of nosharing_cnn_policy.py
    "tiny": _Architecture([_Convolution(8, 8, 4), _Convolution(16, 4, 2)], 128),
}


class CnnPolicy(ActorCritic):
    """Convolutions on images, one trunk for action and value unless told otherwise.

    Args:
        observation_space: a Box ``[channels, height, width]`` (or channels last), uint8 images
            being divided by 255.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        size: ``"small"`` (A3C), ``"large"`` (Nature DQN) or ``"tiny"``.
        shared_trunk: one trunk for action and value; False with size ``"tiny"`` is the original's
            ``nosharing_cnn_policy``.

    Raises:
        ConfigurationError: a space or size that does not fit.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        *,
        size: str = "small",
        shared_trunk: bool = True,
    ) -> None:
        if not isinstance(observation_space, Box) or len(observation_space.shape) != 3:
            raise ConfigurationError(
                f"CnnPolicy cannot read observations of {name_of(observation_space)}, "
                "expected images [channels, height, width]; vectors need policy=mlp"
            )
        check_choice("policy.size", size, ARCHITECTURES)
        shape = observation_space.shape
        architecture = ARCHITECTURES[size]
        channels_last = shape[-1] < shape[0]
        image = (shape[-1], *shape[:2]) if channels_last else shape
        scale = 1 / 255 if observation_space.dtype == "uint8" else 1.0
        super().__init__(
            action_space,
            trunk=_Trunk(architecture, image, scale),
            value_trunk=None if shared_trunk else _Trunk(architecture, image, scale),
            num_features=architecture.num_features,
        )
        self.channels_last = channels_last
        self.arguments = {"size": size, "shared_trunk": shared_trunk}

    def preprocess(self, observation: Tensor) -> Tensor:
        """Turn images into float32 ``[B, C, H, W]``, stored with channels last."""
        if self.channels_last:
            observation = observation.permute(0, 3, 1, 2)
        # CPU convolutions are twice as fast on channels_last memory.
        return observation.to(torch.float32, memory_format=torch.channels_last)


class _Trunk(nn.Module):
    """Convolutions and one linear layer, each with a ReLU: ``[B, C, H, W] -> [B, features]``.

    Images are multiplied by ``scale``.
    """

    def __init__(self, architecture: _Architecture, image: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        channels, height, width = image
        layers: list[nn.Module] = []
        for c in architecture.convolutions:
            layers += [convolution(channels, c.channels, c.kernel, c.stride), nn.ReLU()]
            channels = c.channels
            height, width = ((side - c.kernel) // c.stride + 1 for side in (height, width))
            if min(height, width) < 1:
                raise ConfigurationError(
                    f"images of {image[1]} x {image[2]} are too small for this CNN, "
                    "expected about 84 x 84; smaller ones need a policy of their own"
                )
        self.convolutions = nn.Sequential(*layers)
        self.linear = linear(channels * height * width, architecture.num_features, scale=1.0)

    def forward(self, image: Tensor) -> Tensor:
        first = cast(nn.Conv2d, self.convolutions[0])
        # Some thousand weights are scaled in the place of some million pixels.
        features = F.conv2d(image, first.weight * self.scale, first.bias, first.stride)
        features = self.convolutions[1:](features)
        # Flattened in (H, W, C) order: the original's, and free of a copy with channels last.
        features = features.permute(0, 2, 3, 1).flatten(1)
        return self.linear(features).relu()
