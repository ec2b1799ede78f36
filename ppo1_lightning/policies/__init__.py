"""Actor-critic policies with the original's architectures and initialisation."""

from __future__ import annotations

from ppo1_lightning.policies.auto import auto_policy
from ppo1_lightning.policies.base import ActorCritic, PolicyFactory, PolicyOutput
from ppo1_lightning.policies.cnn import CnnPolicy
from ppo1_lightning.policies.mlp import MlpPolicy
from ppo1_lightning.policies.state import by_time

BUILT_IN: dict[str, type[MlpPolicy] | type[CnnPolicy]] = {
    "MlpPolicy": MlpPolicy,
    "CnnPolicy": CnnPolicy,
}
"""The policies that a checkpoint can name; any other class is passed by the caller."""

__all__ = [
    "BUILT_IN",
    "ActorCritic",
    "CnnPolicy",
    "MlpPolicy",
    "PolicyFactory",
    "PolicyOutput",
    "auto_policy",
    "by_time",
]
