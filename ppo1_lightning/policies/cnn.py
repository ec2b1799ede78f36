"""The convolutional networks of ``ppo1/cnn_policy.py`` and ``ppo1/nosharing_cnn_policy.py``."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError, check_choice
from ppo1_lightning.policies.base import ActorCritic
from ppo1_lightning.policies.initialization import convolution, linear
from ppo1_lightning.policies.memory import MemoryOptions
from ppo1_lightning.policies.normalization import ObservationNormalizer
from ppo1_lightning.policies.spaces import name_of, parts_of


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

    A vector beside the image, normalised as `MlpPolicy` does it, joins what the convolutions make
    of the image before the linear layer.

    Args:
        observation_space: a Box ``[channels, height, width]`` (or channels last), uint8 images
            being divided by 255; or a Dict of it (``image``), a ``vector`` and an ``action_mask``.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        size: ``"small"`` (A3C), ``"large"`` (Nature DQN) or ``"tiny"``.
        shared_trunk: one trunk for action and value; False with size ``"tiny"`` is the original's
            ``nosharing_cnn_policy``.
        initialization: of the weights: ``"original"`` or, as in ppo2, ``"orthogonal"``.
        memory: behind each trunk: ``"gru"``, ``"lstm"`` or None.
        memory_size: units of each of its layers.
        memory_layers: one upon the other.

    Raises:
        ConfigurationError: a space, size or initialization that does not fit.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        *,
        size: str = "small",
        shared_trunk: bool = True,
        initialization: str = "original",
        memory: str | None = None,
        memory_size: int = 128,
        memory_layers: int = 1,
    ) -> None:
        remembered = MemoryOptions(memory, memory_size, memory_layers)
        parts = parts_of(observation_space)
        image = parts.get("image")
        if image is None or len(image.space.shape) != 3:
            raise ConfigurationError(
                f"CnnPolicy cannot read observations of {name_of(observation_space)}, "
                "expected images [channels, height, width]; vectors need policy=mlp"
            )
        check_choice("policy.size", size, ARCHITECTURES)
        shape, vector = image.space.shape, parts.get("vector")
        architecture = ARCHITECTURES[size]
        channels_last = shape[-1] < shape[0]
        pixels = (shape[-1], *shape[:2]) if channels_last else shape
        scale = 1 / 255 if image.space.dtype == "uint8" else 1.0
        numbers = 0 if vector is None else vector.space.shape[0]
        normalizer = vector and ObservationNormalizer((numbers,), columns=vector.columns)
        super().__init__(
            action_space,
            trunk=_Trunk(architecture, pixels, scale, numbers),
            value_trunk=None if shared_trunk else _Trunk(architecture, pixels, scale, numbers),
            num_features=architecture.num_features,
            observation_normalizer=normalizer,
            action_mask=parts.get("action_mask"),
            memory=remembered,
        )
        self.image = image
        self.channels_last = channels_last
        # without the initialization, which says nothing about weights that are loaded
        self.arguments = {"size": size, "shared_trunk": shared_trunk, **remembered.arguments}
        self.initialize(initialization)

    def preprocess(self, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images as float32 ``[B, C, H, W]``, stored with channels last, and vectors."""
        image = observation
        if self.image.columns is not None:
            image = observation[:, self.image.columns].reshape(-1, *self.image.space.shape)
        if self.channels_last:
            image = image.permute(0, 3, 1, 2)
        vector = None
        if self.observation_normalizer is not None:
            vector = self.observation_normalizer(observation)
        # CPU convolutions are twice as fast on channels_last memory.
        return image.to(torch.float32, memory_format=torch.channels_last), vector


class _Trunk(nn.Module):
    """Convolutions and one linear layer, each with a ReLU: ``[B, C, H, W] -> [B, features]``.

    Images are multiplied by ``scale``; ``numbers`` of a vector ``[B, numbers]`` join them before
    the linear layer.
    """

    def __init__(
        self, architecture: _Architecture, image: tuple[int, ...], scale: float, numbers: int
    ) -> None:
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
        inputs = channels * height * width + numbers
        self.linear = linear(inputs, architecture.num_features, scale=1.0)

    def forward(self, inputs: tuple[Tensor, Tensor | None]) -> Tensor:
        image, vector = inputs
        first = cast(nn.Conv2d, self.convolutions[0])
        # Some thousand weights are scaled in the place of some million pixels.
        features = F.conv2d(image, first.weight * self.scale, first.bias, first.stride)
        features = self.convolutions[1:](features)
        # Flattened in (H, W, C) order: the original's, and free of a copy with channels last.
        features = features.permute(0, 2, 3, 1).flatten(1)
        if vector is not None:
            features = torch.cat([features, vector], -1)
        return self.linear(features).relu()
