"""The convolutional networks of ``ppo1/cnn_policy.py`` and ``ppo1/nosharing_cnn_policy.py``."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import Space
from gymnasium.spaces import Box
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError, check_choice
from ppo1_lightning.policies.base import ActorCritic
from ppo1_lightning.policies.initialization import convolution, linear
from ppo1_lightning.policies.memory import MemoryOptions
from ppo1_lightning.policies.normalization import ObservationNormalizer
from ppo1_lightning.policies.spaces import IMAGE, MASK, VECTOR, Part, name_of, parts_of


class _Convolution(NamedTuple):
    channels: int
    kernel: int
    stride: int
    padding: int = 0

    def side(self, before: int) -> int:
        """Return how many pixels of a side are left."""
        return (before + 2 * self.padding - self.kernel) // self.stride + 1


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
    # Ours, for what the others are too coarse for, down to a single pixel
    "grid": _Architecture([_Convolution(16, 3, 1, 1), _Convolution(32, 3, 2, 1)], 128),
}

_SMALLEST_SIDES = {"large": 36, "small": 20, "grid": 1}


def size_for(observation_space: Space[Any]) -> str:
    """Return the largest architecture that all images of an observation are large enough for."""
    sides = [min(_pixels(part.space)[1:]) for part in images_of(observation_space).values()]
    return next(size for size, side in _SMALLEST_SIDES.items() if min(sides) >= side)


def images_of(observation_space: Space[Any]) -> dict[str, Part]:
    """Return the images among what a policy observes."""
    parts = parts_of(observation_space)
    return {name: part for name, part in parts.items() if name.startswith(IMAGE)}


def _pixels(image: Box) -> tuple[int, int, int]:
    """Return channels, height and width."""
    first, second, third = image.shape
    return (third, first, second) if _is_channels_last(image) else (first, second, third)


def _is_channels_last(image: Box) -> bool:
    """Tell by the two sides that are equal, if two are, or else by the fewest."""
    first, second, third = image.shape
    if (first == second) != (second == third):
        return first == second
    return third < first


class CnnPolicy(ActorCritic):
    """Convolutions on images, one trunk for action and value unless told otherwise.

    A vector beside the image, normalised as `MlpPolicy` does it, joins what the convolutions make
    of the image before the linear layer. Several images have convolutions of their own each.

    Args:
        observation_space: a Box ``[channels, height, width]`` (or channels last), uint8 images
            being divided by their largest bound; or a Dict of it (``image``, ``image_2``, ...), a
            ``vector`` and an ``action_mask``.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        size: ``"small"`` (A3C), ``"large"`` (Nature DQN), ``"tiny"``, or ``"grid"`` for images of
            some cells, whose bytes are seen in binary digits below 20 pixels: they are codes more
            often than colours.
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
        found = [*images_of(observation_space).values()]
        if not found or any(len(part.space.shape) != 3 for part in found):
            raise ConfigurationError(
                f"CnnPolicy cannot read observations of {name_of(observation_space)}, "
                "expected images [channels, height, width]; vectors need policy=mlp"
            )
        check_choice("policy.size", size, ARCHITECTURES)
        architecture, vector = ARCHITECTURES[size], parts.get(VECTOR)
        numbers = 0 if vector is None else vector.space.shape[0]
        images = [_Image(part) for part in found]
        super().__init__(
            action_space,
            trunk=_Trunk(architecture, images, numbers),
            value_trunk=None if shared_trunk else _Trunk(architecture, images, numbers),
            num_features=architecture.num_features,
            observation_normalizer=vector
            and ObservationNormalizer(vector.space.shape, columns=vector.columns),
            action_mask=parts.get(MASK),
            memory=remembered,
        )
        self.images = images
        # without the initialization, which says nothing about weights that are loaded
        self.arguments = {"size": size, "shared_trunk": shared_trunk, **remembered.arguments}
        self.initialize(initialization)

    def preprocess(self, observation: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return images as float32 ``[B, C, H, W]``, stored with channels last, and vectors."""
        normalizer = self.observation_normalizer
        vector = None if normalizer is None else normalizer(observation)
        return [image.seen_in(observation) for image in self.images], vector


class _Image:
    """An image among what is observed.

    Args:
        part: of the observation that it is.

    Attributes:
        in_digits: each byte is seen as eight numbers, its binary digits: of bytes too few for any
            architecture but "grid".
        pixels: channels, height and width as the convolutions see it.
        scale: by which they multiply it.
    """

    def __init__(self, part: Part) -> None:
        of_bytes = part.space.dtype == np.uint8
        channels, height, width = _pixels(part.space)
        small = min(height, width) < _SMALLEST_SIDES["small"]
        self.part, self.in_digits = part, of_bytes and small
        self.pixels = (8 * channels if self.in_digits else channels), height, width
        brightest = max(int(part.space.high.max()), 1) if of_bytes else 1
        self.scale = 1.0 if self.in_digits else 1 / brightest

    def seen_in(self, observation: Tensor) -> Tensor:
        """Return it as float32 ``[B, *pixels]``, stored with channels last."""
        image = observation
        if self.part.columns is not None:
            image = observation[:, self.part.columns].reshape(-1, *self.part.space.shape)
        if _is_channels_last(self.part.space):
            image = image.permute(0, 3, 1, 2)
        if self.in_digits:
            image = _binary_digits(image)
        # CPU convolutions are twice as fast on channels_last memory.
        return image.to(torch.float32, memory_format=torch.channels_last)


def _binary_digits(image: Tensor) -> Tensor:
    """Return the digits ``[B, 8 C, H, W]`` of bytes ``[B, C, H, W]``, as 0.0 and 1.0."""
    # Of floats: a row of several parts has nothing else, and ONNX shifts no other bytes.
    worth = 2.0 ** torch.arange(9, device=image.device).view(9, 1, 1)
    multiples = (image.unsqueeze(2) / worth).floor()
    return (multiples[:, :, :-1] - 2 * multiples[:, :, 1:]).flatten(1, 2)


class _Trunk(nn.Module):
    """Convolutions and one linear layer, each with a ReLU: ``[B, C, H, W] -> [B, features]``.

    ``numbers`` of a vector ``[B, numbers]`` join the images before the linear layer.
    """

    def __init__(self, architecture: _Architecture, images: list[_Image], numbers: int) -> None:
        super().__init__()
        self.scales = [image.scale for image in images]
        first, *others = (_convolutions(architecture, image) for image in images)
        self.convolutions = first.layers
        self.further_convolutions = nn.ModuleList(other.layers for other in others)
        inputs = numbers + sum(convolved.num_features for convolved in (first, *others))
        self.linear = linear(inputs, architecture.num_features, scale=1.0)

    def forward(self, inputs: tuple[list[Tensor], Tensor | None]) -> Tensor:
        images, vector = inputs
        stacks = (self.convolutions, *self.further_convolutions)
        parts = [
            _convolved(cast(nn.Sequential, layers), image, scale)
            for layers, image, scale in zip(stacks, images, self.scales, strict=True)
        ]
        parts += [] if vector is None else [vector]
        features = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return self.linear(features).relu()


class _Convolutions(NamedTuple):
    layers: nn.Sequential
    num_features: int


def _convolutions(architecture: _Architecture, image: _Image) -> _Convolutions:
    channels, height, width = image.pixels
    layers: list[nn.Module] = []
    for c in architecture.convolutions:
        layers += [convolution(channels, c.channels, c.kernel, c.stride, c.padding), nn.ReLU()]
        channels, height, width = c.channels, c.side(height), c.side(width)
        if min(height, width) < 1:
            raise ConfigurationError(
                f"images of {image.pixels[1]} x {image.pixels[2]} are too small for this CNN, "
                "expected about 84 x 84; smaller ones need policy=auto or policy.size=grid"
            )
    return _Convolutions(nn.Sequential(*layers), channels * height * width)


def _convolved(layers: nn.Sequential, image: Tensor, scale: float) -> Tensor:
    """Return the features ``[B, C * H * W]`` of images ``[B, C, H, W]``."""
    first = cast(nn.Conv2d, layers[0])
    # Some thousand weights are scaled in the place of some million pixels.
    features = F.conv2d(image, first.weight * scale, first.bias, first.stride, first.padding)
    features = layers[1:](features)
    # Flattened in (H, W, C) order: the original's, and free of a copy with channels last.
    return features.permute(0, 2, 3, 1).flatten(1)
