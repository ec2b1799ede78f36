"""OpenAI baselines' ppo1 as a PyTorch Lightning module, with EnvPool as the simulator."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.ppo import PPO
    from ppo1_lightning.algorithms.trpo import TRPO
    from ppo1_lightning.errors import ConfigurationError, SimulationError
    from ppo1_lightning.optimizers import TensorFlowAdam, TensorFlowRMSprop
    from ppo1_lightning.policies import CnnPolicy, MlpPolicy
    from ppo1_lightning.rollouts.collector import Rollout
    from ppo1_lightning.rollouts.datamodule import EvaluationDataModule, RolloutDataModule
    from ppo1_lightning.rollouts.evaluation import Evaluation
    from ppo1_lightning.simulators.base import EnvironmentSpec

# For one release: ``python -m ppo1_lightning.evaluate`` and its like are found where they were.
__path__.append(str(Path(__file__).with_name("old_forms")))

__version__ = "0.2.0"

__all__ = [
    "PPO",
    "TRPO",
    "CnnPolicy",
    "ConfigurationError",
    "EnvironmentSpec",
    "Evaluation",
    "EvaluationDataModule",
    "MlpPolicy",
    "Rollout",
    "RolloutDataModule",
    "SimulationError",
    "TensorFlowAdam",
    "TensorFlowRMSprop",
]

_MODULES = {
    "PPO": "algorithms.ppo",
    "TRPO": "algorithms.trpo",
    "CnnPolicy": "policies",
    "ConfigurationError": "errors",
    "EnvironmentSpec": "simulators.base",
    "Evaluation": "rollouts.evaluation",
    "EvaluationDataModule": "rollouts.datamodule",
    "MlpPolicy": "policies",
    "Rollout": "rollouts.collector",
    "RolloutDataModule": "rollouts.datamodule",
    "SimulationError": "errors",
    "TensorFlowAdam": "optimizers",
    "TensorFlowRMSprop": "optimizers",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: ``__main__`` has work to do before PyTorch is."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
