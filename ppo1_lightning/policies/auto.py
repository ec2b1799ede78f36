"""The policy that fits what an environment shows: ``policy=auto``."""

from __future__ import annotations

from typing import Any

from gymnasium import Space

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies.cnn import CnnPolicy, images_of, size_for
from ppo1_lightning.policies.mlp import MlpPolicy
from ppo1_lightning.policies.spaces import name_of


def auto_policy(
    observation_space: Space[Any], action_space: Space[Any], **arguments: Any
) -> MlpPolicy | CnnPolicy:
    """Return a `CnnPolicy` where there are images, of the size that fits them, else a `MlpPolicy`.

    Args:
        observation_space: of the policy, as a simulator reports it.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        arguments: of that policy; one that is None has its default.

    Raises:
        ConfigurationError: a space or an argument that does not fit.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    images = images_of(observation_space).values()
    if not images or any(len(image.space.shape) != 3 for image in images):
        return MlpPolicy(observation_space, action_space, **given)
    if of_vectors := given.keys() & _OF_VECTORS:
        raise ConfigurationError(
            f"policy.{min(of_vectors)} is of policies of vectors, observations are "
            f"{name_of(observation_space)}; expected it null, or policy=cnn_large"
        )
    return CnnPolicy(observation_space, action_space, size=size_for(observation_space), **given)


def architecture_for(observation_space: Space[Any]) -> str:
    """Return what `auto_policy` would make, in a word or two."""
    return f"CNN {size_for(observation_space)}" if images_of(observation_space) else "MLP"


_OF_VECTORS = {"hidden_size", "num_layers", "normalize_observations"}
