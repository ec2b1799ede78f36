"""A policy as a LightningModule: built, acted with, evaluated, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from gymnasium import Space
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ppo1_lightning.algorithms import checks, entry, metrics
from ppo1_lightning.errors import ConfigurationError, check_flag, check_integer
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.base import ActionOutputs, PolicyFactory, choose_actions
from ppo1_lightning.policies.normalization import NormalizedPolicy, StepNormalizer
from ppo1_lightning.policies.spaces import distribution_for
from ppo1_lightning.rollouts.acting import WHOLE, Acting, ModuleActing
from ppo1_lightning.rollouts.budget import Clock, Counters
from ppo1_lightning.rollouts.episodes import EpisodeStatistics
from ppo1_lightning.rollouts.evaluation import Episodes
from ppo1_lightning.rollouts.seeding import derive_seed


class PolicyModule(LightningModule):
    """What an algorithm's module is before it learns; see `OnPolicyModule` for the arguments.

    Attributes:
        counters: what the run has used up.
        episodes: statistics of the last episodes of training.
        metrics: the last row of metrics.
        evaluated: the episodes of the last validation or test.
    """

    policy: nn.Module
    distribution: Distribution

    def __init__(
        self,
        policy: PolicyFactory | None,
        seed: int,
        observation_space: Space[Any] | None,
        action_space: Space[Any] | None,
        normalize_observations: bool = False,
    ) -> None:
        super().__init__()
        self.normalize_observations = check_flag("normalize_observations", normalize_observations)
        self.observation_normalizer: StepNormalizer | None = None  # before the policy
        self._policy_factory = checks.policy_factory(policy)
        self.seed = check_integer("seed", seed, at_least=0)
        self._spaces = (observation_space, action_space)
        self.counters, self.episodes, self.clock = Counters(), EpisodeStatistics(), Clock()
        self.metrics: dict[str, float] = {}
        self.evaluated: Episodes | None = None
        # None: the policy acts as the module it is
        self._acting: Callable[[Tensor, Tensor, Sequence[slice]], Acting] | None = None
        self.pools: Sequence[slice] = WHOLE  # that the policy acts in, as of the last rollout

    def configure_model(self) -> None:
        """Build the policy, now that the spaces can be asked for."""
        if hasattr(self, "policy"):
            return
        if self._trainer is None and not (self.knows_spaces and self._policy_factory):
            return  # `load_from_checkpoint` comes by: the checkpoint will tell
        if not self.knows_spaces:
            self._spaces = checks.spaces_of(self._datamodule)
        if self._policy_factory is None:
            name = type(self).__name__
            raise ConfigurationError(
                f"{name} needs a policy, such as {name}(MlpPolicy), or a checkpoint"
            )
        observation_space, action_space = self.spaces
        self.distribution = distribution_for(action_space)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "policy"))
            self.policy = self._policy_factory(observation_space, action_space)
        if self.normalize_observations:
            checks.normalizes_nothing(self.policy)
            self.observation_normalizer = StepNormalizer(observation_space)

    @property
    def whole_policy(self) -> nn.Module:
        """The policy, from observations as the environment's."""
        if self.observation_normalizer is None:
            return self.policy
        return NormalizedPolicy(self.observation_normalizer, self.policy)

    @property
    def knows_spaces(self) -> bool:
        """Tell whether both spaces are known."""
        return None not in self._spaces

    @property
    def spaces(self) -> checks.Spaces:
        """Observation and action space, once they are known."""
        observation_space, action_space = self._spaces
        assert observation_space is not None
        assert action_space is not None
        return observation_space, action_space

    @property
    def _datamodule(self) -> Any:
        return getattr(self._trainer, "datamodule", None) if self._trainer else None

    def stop_when_spent(self) -> None:
        """Stop when the budget is spent; every rank's counters say so at the same time."""
        budget = getattr(self._datamodule, "budget", None)
        if budget is not None and budget.fraction_spent(self.counters) >= 1:
            self.trainer.should_stop = True

    # ---------------------------------------------------------------- acting

    def forward(self, observations: Tensor) -> Any:
        """Return the policy's (distribution parameters, values, state) for ``[B, ...]``."""
        return self.whole_policy(observations, None)

    @torch.inference_mode()
    def act(self, observations: Tensor, noise: Tensor) -> ActionOutputs:
        """Sample actions ``[N, ...]``; all results are on this module's device.

        Args:
            observations: ``[N, *observation_shape]``.
            noise: ``[N, noise_size]``, from `Distribution.noise`.

        Returns:
            Actions, distribution parameters ``[N, P]`` and values ``[N]``.
        """
        return self._choose(self.whole_policy, observations, noise)

    @torch.inference_mode()
    def act_as_shown(self, observations: Tensor, noise: Tensor) -> ActionOutputs:
        """Sample actions for what `observation_normalizer` has made: a rollout's."""
        return self._choose(self.policy, observations, noise)

    def _choose(self, policy: nn.Module, observations: Tensor, noise: Tensor) -> ActionOutputs:
        inputs = observations.to(self.device), noise.to(self.device)
        with self._in_precision():
            return choose_actions(policy, self.distribution, *inputs)

    @torch.inference_mode()
    def act_greedily(self, observations: Tensor, noise: Tensor) -> ActionOutputs:
        """Return the most likely actions, otherwise as `act`; the noise is not looked at."""
        with self._in_precision():
            dist_params, values, _ = self.whole_policy(observations.to(self.device), None)
            dist_params = dist_params.float()
            return self.distribution.mode(dist_params), dist_params, values.float()

    def acting(self, observations: Tensor, noise: Tensor, pools: Sequence[slice] = WHOLE) -> Acting:
        """Return how the policy acts in a rollout: by `act`, or as a graph where there is one.

        Where observations are normalised before the policy, by `act_as_shown`.

        Args:
            observations: ``[T + 1, N, *observation_shape]``, normalised.
            noise: ``[T, N, noise_size]``.
            pools: the environments that it acts in at once.
        """
        self.pools = pools
        if self._acting is not None:
            return self._acting(observations, noise, pools)
        act = self.act if self.observation_normalizer is None else self.act_as_shown
        return ModuleActing(act, observations, noise, self.device, pools)

    def _in_precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the policy learns, so that it acts as it learns."""
        if self._trainer is None:
            return nullcontext()
        return self._trainer.precision_plugin.forward_context()

    # ---------------------------------------------------------------- evaluation

    def validation_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Report the episodes of an evaluation while training, see `rollouts.evaluation`."""
        metrics.log_evaluation(self, episodes)

    def test_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Report the episodes of an evaluation; `Trainer.test` returns the numbers."""
        metrics.log_evaluation(self, episodes)

    def on_validation_start(self) -> None:
        """Stop the clock: evaluation is not training."""
        self.clock.pause()

    def on_validation_end(self) -> None:
        """Start it again."""
        self.clock.resume()

    # ---------------------------------------------------------------- checkpoints

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, *args: Any, weights_only: bool | None = None, **kwargs: Any
    ) -> Self:
        """Return the module of a checkpoint, as Lightning does, but as plain data from a URL too.

        Args:
            weights_only: False runs whatever the file says: only for one that you trust.
        """
        weights_only = True if weights_only is None else weights_only
        return super().load_from_checkpoint(
            entry.upgraded(checkpoint_path, weights_only=weights_only),
            *args,
            weights_only=weights_only,
            **kwargs,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, spaces and the policy's name and arguments, as plain containers."""
        checkpoint[entry.KEY] = {
            **self._identity(),
            "counters": self.counters.state_dict(),
            "episodes": self.episodes.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, restore the counters, build the policy where needed."""
        saved = entry.entry_of(checkpoint)
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            saved["optimizer"] = None  # of no use here
        if not hasattr(self, "policy"):
            self._policy_factory = self._policy_factory or entry.policy_factory(saved)
            if not self.knows_spaces:
                self._spaces = entry.restore_spaces(saved)
            self.configure_model()
        entry.check_same_run(saved, self._identity())
        entry.check_same_weights(checkpoint, self.state_dict())
        if self._trainer is not None and not checkpoint.get("optimizer_states"):
            raise ConfigurationError(
                "the checkpoint holds no optimizer state, so a run cannot be resumed from it"
            )
        self.counters = Counters(**saved["counters"])
        self.episodes.load_state_dict(saved["episodes"])

    def _identity(self) -> dict[str, Any]:
        env = getattr(self._datamodule, "env", None)
        environment = env.id if env is not None else None
        return entry.identity(environment, self.spaces, self.policy, self.optimizer_name)

    @property
    def optimizer_name(self) -> str | None:
        """Name of the optimizer's class, None where only the user knows."""
        return None
