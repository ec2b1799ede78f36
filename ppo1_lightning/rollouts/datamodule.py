"""The data of a run: which environments, how many, for how long."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any, cast

from gymnasium import Space
from lightning import LightningDataModule

from ppo1_lightning import distributed, simulators
from ppo1_lightning.errors import ConfigurationError, check_integer, check_memory
from ppo1_lightning.policies.spaces import row_space
from ppo1_lightning.rollouts.budget import Budget
from ppo1_lightning.rollouts.collector import Actor
from ppo1_lightning.rollouts.dataset import RolloutDataset
from ppo1_lightning.rollouts.evaluation import Evaluation, EvaluationDataset, Player
from ppo1_lightning.rollouts.normalized import NormalizedSimulator
from ppo1_lightning.rollouts.seeding import chosen_seed, environment_seeds
from ppo1_lightning.simulators.actions import ActionAdapter
from ppo1_lightning.simulators.base import EnvironmentSpec, Simulator
from ppo1_lightning.simulators.observations import ObservationAdapter
from ppo1_lightning.simulators.placement import own_cores
from ppo1_lightning.simulators.wrapper_state import own_wrapper_states


class RolloutDataModule(LightningDataModule):
    """Feeds a Trainer with rollouts of simulated environments, one per batch.

    Each rank builds and steps its share of the environments, and nothing is built before the
    first rollout; the spaces are known from the start.

    Args:
        env: an environment's id (EnvPool's where it has it, else Gymnasium's), or its whole spec.
        num_envs: environments of all devices together.
        num_steps: steps of each environment in an iteration (``timesteps_per_actorbatch``).
        total_steps, total_episodes, total_iterations, total_seconds: the budget, exactly one of
            them. Steps are rows collected, ``num_envs * num_steps`` an iteration.
        seed: of the environments and of the action noise; None: that of
            `lightning.seed_everything`, or 0.
        evaluation: of whole episodes, Lightning's validation while training (how often is the
            Trainer's ``val_check_interval``) and `Trainer.test`; None: no validation.

    Raises:
        ConfigurationError: an unknown environment or option, or sizes out of range.
    """

    def __init__(
        self,
        env: str | EnvironmentSpec,
        *,
        num_envs: int,
        num_steps: int,
        total_steps: int | None = None,
        total_episodes: int | None = None,
        total_iterations: int | None = None,
        total_seconds: float | None = None,
        seed: int | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        super().__init__()
        self.env = EnvironmentSpec(env) if isinstance(env, str) else env
        self.num_envs = check_integer("num_envs", num_envs, at_least=1)
        self.num_steps = check_integer("num_steps", num_steps, at_least=1)
        self.seed = chosen_seed(seed)
        self.budget = Budget(total_steps, total_episodes, total_iterations, total_seconds)
        self.evaluation = evaluation
        if evaluation is not None:  # Lightning validates wherever it finds this method
            self.val_dataloader = self.test_dataloader
        else:  # and else wonders why `PPO` could
            warnings.filterwarnings("ignore", ".*have no `val_dataloader`. Skipping val loop")
        self._dataset: RolloutDataset | None = None

    @cached_property
    def adapters(self) -> tuple[ObservationAdapter, ActionAdapter]:
        """What stands between the environment's own spaces and these."""
        return simulators.make_adapters(self.env)

    @cached_property
    def spaces(self) -> tuple[Space[Any], Space[Any]]:
        """Observation and action space of one environment."""
        observation, action = self.adapters
        return observation.space, action.space

    def setup(self, stage: str) -> None:
        """Refuse a module that nothing here can act with.

        Raises:
            ConfigurationError: the Trainer's module is no algorithm of this package.
        """
        module = self.trainer and self.trainer.lightning_module
        if not hasattr(module, "acting"):
            raise ConfigurationError(
                f"the Trainer's module is a {type(module).__name__}, expected PPO or TRPO: "
                "subclass it (examples/library_use.py) rather than hold it as a part"
            )

    def train_dataloader(self) -> RolloutDataset:
        """Return this rank's rollouts; needs the Trainer that this module is attached to.

        Raises:
            ConfigurationError: there is none, or no memory holds a rollout's observations.
        """
        if self.trainer is None:
            raise ConfigurationError("train_dataloader() needs a Trainer: use Trainer.fit")
        module: Any = self.trainer.lightning_module
        known = hasattr(module, "policy") and hasattr(module, "sizes")
        shared = known and module.sizes(self.num_envs, self.num_steps).shared
        own = len(distributed.own_environments(self.num_envs))
        rows = (self.num_envs if shared else own) * (self.num_steps + 1)
        row = row_space(self.spaces[0])
        check_memory(
            f"the observations of num_envs={self.num_envs:,} over num_steps={self.num_steps:,}",
            rows * math.prod(row.shape) * row.dtype.itemsize,
        )
        self._close()
        self._dataset = RolloutDataset(
            self._make_simulator,
            cast(Actor, self.trainer.lightning_module),
            self.budget,
            num_envs=self.num_envs,
            num_steps=self.num_steps,
            seed=self.seed,
        )
        return self._dataset

    def test_dataloader(self) -> EvaluationDataset:
        """Return the evaluation for `Trainer.test`."""
        return _evaluation_dataset(self, self.env, self.evaluation or Evaluation(), self.seed)

    @property
    def seconds_to_first_step(self) -> float | None:
        """Seconds from a command's start to its first environment step; None: not known."""
        return None if self._dataset is None else self._dataset.seconds_to_first_step

    def restart(self) -> None:
        """Go on with new environments, seeded for the iteration that the run has come to."""
        if self._dataset is not None:
            self._dataset.close()

    def keep_wrapper_states(self) -> None:
        """Let the Trainer's module know what the environments' wrappers have counted by now."""
        if self._dataset is not None:
            self._dataset.keep_wrapper_states()

    def teardown(self, stage: str) -> None:
        """Free the simulator."""
        self._close()

    def _make_simulator(self) -> Simulator:
        assert self.trainer is not None
        module = cast(Actor, self.trainer.lightning_module)
        iteration = module.counters.iterations
        seeds = environment_seeds(self.seed, self.num_envs, iteration=iteration)
        own = distributed.own_environments(self.num_envs)
        own_seeds = [seeds[i] for i in own]
        cores = own_cores(*distributed.local_ranks())
        states = own_wrapper_states(module.wrapper_states, own)
        simulator = simulators.make_simulator(
            self.env, own_seeds, cores=cores, wrapper_states=states
        )
        if module.observation_normalizer is None:
            return simulator
        return NormalizedSimulator(
            simulator,
            module.observation_normalizer,
            copies=distributed.own_copies(self.num_envs),
            num_steps=self.num_steps,
            device=module.device,
        )

    def _close(self) -> None:
        if self._dataset is not None:
            self._dataset.close()
            self._dataset = None


class EvaluationDataModule(LightningDataModule):
    """Lets `Trainer.test` and `Trainer.validate` evaluate a policy, without training.

    Args:
        env: an environment's id (EnvPool's where it has it, else Gymnasium's), or its whole spec.
        evaluation: how many episodes, and how they are played.
        seed: of the environments and of the action noise; no training run of the same seed uses
            the same. None: as in `RolloutDataModule`.

    Raises:
        ConfigurationError: an unknown environment or option.
    """

    def __init__(
        self,
        env: str | EnvironmentSpec,
        evaluation: Evaluation | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.env = EnvironmentSpec(env) if isinstance(env, str) else env
        self.evaluation = evaluation or Evaluation()
        self.seed = chosen_seed(seed)

    @cached_property
    def spaces(self) -> tuple[Space[Any], Space[Any]]:
        """Observation and action space of one environment."""
        return simulators.spaces(self.env)

    def val_dataloader(self) -> EvaluationDataset:
        """Return the evaluation."""
        return _evaluation_dataset(self, self.env, self.evaluation, self.seed)

    test_dataloader = val_dataloader


def _evaluation_dataset(
    data: LightningDataModule, env: EnvironmentSpec, evaluation: Evaluation, seed: int
) -> EvaluationDataset:
    if data.trainer is None:
        raise ConfigurationError("an evaluation needs a Trainer: use Trainer.test")
    player = cast(Player, data.trainer.lightning_module)
    return EvaluationDataset(env, evaluation, player, seed=seed)
