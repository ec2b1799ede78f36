"""The multi-layer perceptron of ``ppo1/mlp_policy.py``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError, check_integer, check_memory
from ppo1_lightning.policies.base import ActorCritic
from ppo1_lightning.policies.initialization import linear
from ppo1_lightning.policies.memory import MOST_LAYERS, TRAINED, MemoryOptions
from ppo1_lightning.policies.normalization import ObservationNormalizer
from ppo1_lightning.policies.spaces import name_of, parts_of


class MlpPolicy(ActorCritic):
    """Tanh layers on normalised observations, separate for action and value as in the original.

    Args:
        observation_space: a Box of floats ``[size]``, or a Dict of it (``vector``) and an
            ``action_mask``.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        hidden_size: units of each hidden layer (``hid_size``).
        num_layers: hidden layers (``num_hid_layers``).
        shared_trunk: one trunk for action and value.
        normalize_observations: keep running statistics and feed z-scores clipped to [-5, 5].
        initialization: of the weights: ``"original"`` or, as in ppo2, ``"orthogonal"``.
        memory: behind each trunk: ``"gru"``, ``"lstm"`` or None.
        memory_size: units of each of its layers.
        memory_layers: one upon the other.

    Raises:
        ConfigurationError: a space or size that does not fit.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        *,
        hidden_size: int = 64,
        num_layers: int = 2,
        shared_trunk: bool = False,
        normalize_observations: bool = True,
        initialization: str = "original",
        memory: str | None = None,
        memory_size: int = 128,
        memory_layers: int = 1,
    ) -> None:
        remembered = MemoryOptions(memory, memory_size, memory_layers)
        parts = parts_of(observation_space)
        if not {"vector"} <= parts.keys() <= {"vector", "action_mask"}:
            raise ConfigurationError(
                f"MlpPolicy cannot read observations of {name_of(observation_space)}, "
                "expected a one-dimensional Box; images [C, H, W] need policy=auto, cnn_small, "
                "cnn_large, or cnn_separate for TRPO"
            )
        hidden_size = check_integer("policy.hidden_size", hidden_size, at_least=1)
        num_layers = check_integer("policy.num_layers", num_layers, at_least=1, at_most=MOST_LAYERS)
        vector = parts["vector"]
        weights = hidden_size * (vector.space.shape[0] + hidden_size * (num_layers - 1))
        check_memory(f"policy.num_layers={num_layers} of {hidden_size} units", weights * TRAINED)
        sizes = [vector.space.shape[0], *[hidden_size] * num_layers]
        super().__init__(
            action_space,
            trunk=_tanh_layers(sizes),
            value_trunk=None if shared_trunk else _tanh_layers(sizes),
            num_features=hidden_size,
            observation_normalizer=ObservationNormalizer(vector.space.shape, columns=vector.columns)
            if normalize_observations
            else None,
            action_mask=parts.get("action_mask"),
            memory=remembered,
        )
        self._columns = vector.columns
        # without the initialization, which says nothing about weights that are loaded
        self.arguments = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "shared_trunk": shared_trunk,
            "normalize_observations": normalize_observations,
            **remembered.arguments,
        }
        self.initialize(initialization)

    def preprocess(self, observation: Tensor) -> Tensor:
        """Take the vector of observations ``[B, ...]``, normalised where that is asked for."""
        if self.observation_normalizer is None and self._columns is not None:
            return observation[:, self._columns]
        return super().preprocess(observation)


def _tanh_layers(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [linear(inputs, outputs, scale=1.0), nn.Tanh()]
    return nn.Sequential(*layers)
