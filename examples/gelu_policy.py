"""A policy of one's own for the command line.

python -m ppo1_lightning env=cartpole policy._target_=gelu_policy.GeluPolicy
"""

from __future__ import annotations

from typing import Any

from gymnasium import Space
from torch import nn

from ppo1_lightning import MlpPolicy


class GeluPolicy(MlpPolicy):
    """The MLP of the presets, and its arguments, with GELU in the place of tanh.

    Any ``nn.Module`` made from the two spaces would do, see `library_use.py` for one from scratch.
    """

    def __init__(
        self, observation_space: Space[Any], action_space: Space[Any], **arguments: Any
    ) -> None:
        super().__init__(observation_space, action_space, **arguments)
        for trunk in (self.trunk, self.value_trunk):
            if isinstance(trunk, nn.Sequential):
                for i, layer in enumerate(trunk):
                    trunk[i] = nn.GELU() if isinstance(layer, nn.Tanh) else layer
