"""A policy as a LightningModule: built, acted with, evaluated, saved and loaded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, cast

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.algorithms import checks, entry, hooks, metrics, plain, policy_checks
from ppo1_lightning.algorithms.strict import StrictModule
from ppo1_lightning.errors import ConfigurationError, check_flag
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.base import ActionOutputs, PolicyFactory, choose_actions
from ppo1_lightning.policies.normalization import NormalizedPolicy, StepNormalizer
from ppo1_lightning.policies.spaces import distribution_for
from ppo1_lightning.policies.state import ask, initial_state
from ppo1_lightning.rollouts import seeding
from ppo1_lightning.rollouts.acting import WHOLE, Acting, ActingFactory, ModuleActing
from ppo1_lightning.rollouts.budget import Clock, Counters
from ppo1_lightning.rollouts.episodes import EpisodeStatistics
from ppo1_lightning.rollouts.evaluation import Episodes
from ppo1_lightning.rollouts.seeding import chosen_seed, derive_seed

_log = logging.getLogger(__name__)


class PolicyModule(StrictModule):
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
        seed: int | None,
        observation_space: Space[Any] | None,
        action_space: Space[Any] | None,
        normalize_observations: bool = False,
    ) -> None:
        super().__init__()
        self.normalize_observations = check_flag("normalize_observations", normalize_observations)
        self.observation_normalizer: StepNormalizer | None = None  # before the policy
        self.policy_factory = checks.policy_factory(policy)
        self.seed = chosen_seed(seed)
        self._spaces = (observation_space, action_space)
        self.counters, self.episodes, self.clock = Counters(), EpisodeStatistics(), Clock()
        self.metrics: dict[str, float] = {}
        self.evaluated: Episodes | None = None
        self.evaluated_in = 0  # the iteration of the last evaluation while training
        self.owes_evaluation = False  # the run was stopped before one that was due
        self.wrapper_states: list[dict[str, Any]] = []  # of the environments, as last asked for
        # None: the policy acts as the module it is
        self._acting: ActingFactory | None = None
        self.pools: Sequence[slice] = WHOLE  # that the policy acts in, as of the last rollout
        if self.knows_spaces and self.policy_factory:
            self.build_policy(*self.spaces)

    @hooks.own
    def configure_callbacks(self) -> list[Any]:
        """Build the policy: this is the first hook of all, and callbacks look for it in theirs."""
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # see `train`
        plain.read_plain_data(self.trainer.strategy)
        if hasattr(self._datamodule, "spaces"):
            self._build_if_missing()
        return []

    @hooks.own
    def configure_model(self) -> None:
        """Build the policy, where the spaces could not be asked for before."""
        if self._trainer is not None:
            self._build_if_missing()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the policy: it acts and learns in evaluation mode.

        So the probability ratio is 1 before the first step, whatever the policy has in it.
        """
        super().train(mode)
        if hasattr(self, "policy"):
            self.policy.eval()
        return self

    def _build_if_missing(self) -> None:
        if not hasattr(self, "policy"):
            known = self.spaces if self.knows_spaces else checks.spaces_of(self._datamodule)
            self.build_policy(*known)

    def build_policy(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        """Make the policy for an environment's spaces.

        Raises:
            ConfigurationError: there is nothing that makes one, or nothing can learn from it.
        """
        if self.policy_factory is None:
            name = type(self).__name__
            raise ConfigurationError(
                f"{name} needs a policy, such as {name}(MlpPolicy), or a checkpoint"
            )
        self._spaces = observation_space, action_space
        self.distribution = distribution_for(action_space)
        with seeding.apart(derive_seed(self.seed, "policy")), torch.inference_mode(False):
            policy = self.policy_factory(observation_space, action_space)
        policy_checks.check(policy, observation_space, self.distribution)
        self.policy = policy.eval()
        if self.normalize_observations:
            checks.normalizes_nothing(self.policy)
            checks.acts_in_rollouts(type(self), PolicyModule)
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
        assert self.knows_spaces
        return cast(checks.Spaces, self._spaces)

    @property
    def _datamodule(self) -> Any:
        return getattr(self._trainer, "datamodule", None) if self._trainer else None

    def ask_wrappers(self) -> None:
        """Let `wrapper_states` be what the environments' wrappers have counted by now."""
        if hasattr(self._datamodule, "keep_wrapper_states"):
            self._datamodule.keep_wrapper_states()

    def stop_when_spent(self) -> None:
        """Stop when the budget is spent; every rank's counters say so at the same time."""
        budget = getattr(self._datamodule, "budget", None)
        if budget is not None and budget.fraction_spent(self.counters) >= 1:
            self.trainer.should_stop = True

    # ---------------------------------------------------------------- acting

    def forward(self, observations: Tensor, *memory: Tensor | None) -> Any:
        """Return (distribution parameters, values, state) for ``[B, ...]``; see `act`."""
        return ask(self.whole_policy, observations, *(memory or (None, None)))

    def initial_state(self, num_envs: int) -> Tensor:
        """Return the state ``[N, S]`` in which episodes begin, S = 0 for one without memory."""
        return initial_state(self.policy, num_envs)

    @torch.inference_mode()
    def act(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        """Sample actions ``[N, ...]``; all results are on this module's device.

        Args:
            observations: ``[N, *observation_shape]``.
            noise: ``[N, noise_size]``, from `Distribution.noise`.
            memory: of a policy that has any, its state ``[N, S]`` (`initial_state`) and ``starts
                [N]``, where an episode begins; without, one begins everywhere.
        """
        return self._choose(self.whole_policy, observations, noise, *memory)

    @torch.inference_mode()
    def act_as_shown(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        """Sample actions for what `observation_normalizer` has made: a rollout's."""
        return self._choose(self.policy, observations, noise, *memory)

    @torch.inference_mode()
    def act_greedily(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> ActionOutputs:
        """Return the most likely actions, otherwise as `act`; the noise is not looked at."""
        return self._choose(self.whole_policy, observations, None, *memory)

    def _choose(self, policy: nn.Module, *inputs: Tensor | None) -> ActionOutputs:
        here = [None if tensor is None else tensor.to(self.device) for tensor in inputs]
        with self._in_precision():
            return choose_actions(policy, self.distribution, *here)  # type: ignore[arg-type]

    def acting(
        self,
        observations: Tensor,
        noise: Tensor,
        pools: Sequence[slice] = WHOLE,
        state: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Acting:
        """Return how the policy acts in a rollout, see `ModuleActing` for the arguments."""
        self.pools = pools
        if self._acting is not None and (changed := self._acting.outdated()):
            _log.warning("acting: as a module from here on, for %s has changed", changed)
            self._acting = None
        if self._acting is not None:
            return self._acting(observations, noise, pools, state, starts)
        act = self.act if self.observation_normalizer is None else self.act_as_shown
        return ModuleActing(act, observations, noise, self.device, pools, state, starts)

    def _in_precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the policy learns, so that it acts as it learns."""
        if self._trainer is None:
            return nullcontext()
        return self._trainer.precision_plugin.forward_context()

    def validation_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Report the episodes of an evaluation: while training, or what `Trainer.test` returns."""
        metrics.log_evaluation(self, episodes)

    test_step = validation_step

    @hooks.own
    def on_validation_start(self) -> None:
        """Stop the clock: evaluation is not training, but goes on with what its wrappers know."""
        self.ask_wrappers()
        self.clock.pause()

    @hooks.own
    def on_validation_end(self) -> None:
        """Start it again."""
        self.clock.resume()

    # ---------------------------------------------------------------- checkpoints

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the module of a checkpoint, as Lightning does, but as plain data from a URL too.

        Args:
            weights_only: False runs whatever the file says: only for one that you trust.
        """
        weights_only = True if weights_only is None else weights_only
        content = entry.upgraded(checkpoint_path, cls.algorithm(), weights_only=weights_only)
        asked = entry.STRICT.set(strict)
        try:
            return super().load_from_checkpoint(
                content, map_location, hparams_file, strict, weights_only, **kwargs
            )
        finally:
            entry.STRICT.reset(asked)

    @hooks.own
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, spaces and the policy's name and arguments, as plain containers."""
        entry.write(checkpoint, self)

    @hooks.own
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, restore the counters, build the policy where needed."""
        entry.restore_run(checkpoint, self)

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint has to agree with, see `entry.identity`."""
        env = getattr(self._datamodule, "env", None)
        environment = env.id if env is not None else None
        return entry.identity(
            environment, self.spaces, self.policy, self.algorithm(), self.optimizer_name
        )

    @classmethod
    def algorithm(cls) -> str:
        """Return the name of the package's class that this one is or comes from."""
        package = __name__.partition(".")[0]
        return next(c.__name__ for c in cls.__mro__ if c.__module__.partition(".")[0] == package)

    @property
    def optimizer_name(self) -> str | None:
        """Name of the optimizer's class, None where only the user knows."""
        return None
