"""OpenAI baselines' ppo1 as a PyTorch Lightning module, with EnvPool as the simulator."""

from __future__ import annotations

from ppo1_lightning.data import EvaluationDataModule, RolloutDataModule
from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.evaluation import Evaluation
from ppo1_lightning.module import PPO
from ppo1_lightning.policies import CnnPolicy, MlpPolicy
from ppo1_lightning.rollout import Rollout
from ppo1_lightning.simulators.base import EnvironmentSpec

__version__ = "0.1.0"

__all__ = [
    "PPO",
    "CnnPolicy",
    "ConfigurationError",
    "EnvironmentSpec",
    "Evaluation",
    "EvaluationDataModule",
    "MlpPolicy",
    "Rollout",
    "RolloutDataModule",
    "SimulationError",
]
