"""What every on-policy actor-critic does with a rollout, before and after its update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning import distributed
from ppo1_lightning.algorithms import checks, hooks, loop, metrics
from ppo1_lightning.algorithms.coefficients import Coefficients, anneal, take_as_asked
from ppo1_lightning.algorithms.guard import Snapshot
from ppo1_lightning.algorithms.paths import PATHS, as_it_is_now, make_paths
from ppo1_lightning.algorithms.policy_module import PolicyModule
from ppo1_lightning.algorithms.update import Update, give_own_memory
from ppo1_lightning.errors import check_choice, check_flag, check_integer, check_number
from ppo1_lightning.functional.advantages import generalized_advantages
from ppo1_lightning.optimizers import TensorFlowAdam
from ppo1_lightning.policies.base import PolicyFactory
from ppo1_lightning.policies.normalization import RewardNormalizer
from ppo1_lightning.policies.state import ask, state_size
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.seeding import generator
from ppo1_lightning.rollouts.segment import Minibatch, Segment, Standardize, lay_out
from ppo1_lightning.rollouts.sizes import Sizes
from ppo1_lightning.rollouts.units import shuffled_units

_log = logging.getLogger(__name__)


class OnPolicyModule(PolicyModule):
    """The base of the algorithms: policy, segment of a rollout, counters, Lightning's hooks.

    A subclass has a `training_step` of `begin`, its update and `finish`, a `loss`, the `terms` to
    be measured, and the number of its `passes` over a rollout in minibatches.

    Args:
        policy: makes the policy from (observation_space, action_space); None only when a
            checkpoint names a built-in one. See `policies.base.ActorCritic` for what it must be.
        minibatch_size: rows of a minibatch, all devices together (``optim_batchsize`` times the
            number of MPI workers). None: all rows of a rollout.
        mpi_workers: the original's MPI processes: each standardises its own advantages and gives
            the same number of rows to each minibatch. None: see `Sizes.create`.
        learning_rate: the optimizer's step size (``optim_stepsize``).
        optimizer: makes it from (named parameters, lr=...), as the class `torch.optim.Adam` does.
        max_grad_norm: largest norm of the gradient, None for no clipping.
        anneal: names of the arguments that go linearly to 0 at the end of the budget.
        gamma: discount factor.
        gae_lambda: lambda of the generalised advantage estimation (``lam``).
        normalize_advantages: ``"worker"`` (the original's: over a worker's segment, population
            std, no epsilon) or another one of `rollouts.segment.Standardize`.
        bootstrap_truncation: add V(final observation) at a time limit; the original takes 0.
        normalize_returns, normalize_observations: as ppo2 does, see `policies.normalization`.
        compile: True, ``"trace"``, False or ``"auto"``, see `paths.choose_path`.
        seed: of the initial weights and of the order of minibatches; None: that of
            `lightning.seed_everything`, or 0.
        log_every: iterations between two rows of metrics.
        observation_space, action_space: None takes them from the data module.

    Raises:
        ConfigurationError: a value out of range, or (from Lightning's hooks) sizes that do not
            divide, a strategy or precision that is not supported, a checkpoint that does not fit.
    """

    coefficients: tuple[str, ...] = ()
    """Names of the arguments that the loss reads; ``anneal`` may hold them too."""

    def __init__(
        self,
        policy: PolicyFactory | None = None,
        *,
        minibatch_size: int | None = 64,
        mpi_workers: int | None = None,
        sequence_length: int | None = None,
        learning_rate: float = 3e-4,
        optimizer: Callable[..., torch.optim.Optimizer] = TensorFlowAdam,
        max_grad_norm: float | None = None,
        anneal: Sequence[str] = (),
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        normalize_advantages: Standardize = "worker",
        bootstrap_truncation: bool = False,
        normalize_returns: bool = False,
        normalize_observations: bool = False,
        compile: bool | Literal["auto", "trace"] = "auto",
        seed: int | None = None,
        log_every: int = 1,
        observation_space: Space[Any] | None = None,
        action_space: Space[Any] | None = None,
    ) -> None:
        super().__init__(policy, seed, observation_space, action_space, normalize_observations)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.minibatch_size, self.mpi_workers = minibatch_size, mpi_workers  # see `sizes`
        self.sequence_length = sequence_length
        self.learning_rate = check_number("learning_rate", learning_rate, at_least=0)
        makes = "an optimizer from (named parameters, lr=...)"
        self.optimizer_factory = checks.maker("optimizer", optimizer, makes)
        self.max_grad_norm = checks.limit("max_grad_norm", max_grad_norm)
        self.anneal = checks.names("anneal", anneal, ("learning_rate", *self.coefficients))
        self.gamma = check_number("gamma", gamma, at_least=0, at_most=1)
        self.gae_lambda = check_number("gae_lambda", gae_lambda, at_least=0, at_most=1)
        check_choice("normalize_advantages", normalize_advantages, get_args(Standardize))
        self.normalize_advantages: Standardize = normalize_advantages
        self.bootstrap_truncation = check_flag("bootstrap_truncation", bootstrap_truncation)
        normalize_returns = check_flag("normalize_returns", normalize_returns)
        self.reward_normalizer = RewardNormalizer(self.gamma) if normalize_returns else None
        check_choice("compile", compile, PATHS)
        self.compile_update = compile
        self.log_every = check_integer("log_every", log_every, at_least=1)
        self.own_optimizer: torch.optim.Optimizer | None = None
        self.now = Coefficients()  # an algorithm's own, if it has any
        self._update: Update | None = None  # made in the first iteration
        self._before: Snapshot | None = None  # the update

    @property
    def passes(self) -> int:
        """Passes over a rollout in minibatches."""
        raise NotImplementedError

    def loss(self, batch: Minibatch) -> Tensor:
        """Return this rank's share of what `update` makes small, a scalar, for its rows."""
        raise NotImplementedError

    def terms(self, batch: Minibatch, dist_params: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Return shares of the means to log, for ``dist_params [B, P]`` and ``values [B]``."""
        raise NotImplementedError

    def begin(self, rollout: Rollout) -> Segment:
        """Lay out what the update needs; only the policy's statistics change.

        They come first, then the old policy is frozen: so the ratio starts at 1.
        """
        checks.on_policy(rollout, self.counters)
        last, self._before = self._before, Snapshot(self, self._optimizer)
        anneal(self, self._optimizer, rollout.fraction_spent)
        normalizer = getattr(self.policy, "observation_normalizer", None)
        if normalizer is not None:
            normalizer.update(rollout.observations[rollout.valid])
        sizes = self.sizes(rollout.rows // len(rollout.rewards), len(rollout.rewards))
        segment = lay_out(
            rollout,
            *self.estimate_advantages(rollout),
            sizes=sizes,
            order=self.minibatch_order(sizes).to(self.device),
            standardize=self.normalize_advantages,
            distribution=self.distribution,
            # without statistics it acted as it is now
            evaluate=None if normalizer is None else lambda *rows: metrics.evaluate(self, *rows)[0],
        )
        if self._update is None:
            with self.clock.paused():  # compiling is not training
                self._update, self._acting = make_paths(self, rollout, segment, sizes, last is None)
        return segment

    def update(self, minibatches: Minibatch) -> None:
        """Take one optimizer step on `loss` for each of the minibatches ``[M, B, ...]``."""
        assert self._update is not None
        now = as_it_is_now(self, self._update, minibatches)
        if now is not self._update:
            self._update, self._acting = now, None
        self._update(minibatches)

    def finish(self, rollout: Rollout, segment: Segment) -> None:
        """Count, measure the updated policy, log.

        Explicit and no hook: callbacks' hooks come before the module's, and look at the counters.

        Raises:
            DivergenceError: something is not a finite number; the update has been undone.
        """
        assert self._before is not None
        self._before.refuse_divergence({"parameter_norm": metrics.count(self, rollout)})
        self.stop_when_spent()
        if self.counters.iterations % self.log_every == 0 or self.trainer.should_stop:
            measured = self.measure(segment)
            self._before.refuse_divergence(measured)
            metrics.log_row(self, measured)
        loop.count_iteration(self)

    @hooks.final("a policy of your own (policy=...), which acts and is measured like that too")
    def outputs(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Return distribution parameters ``[B, P]`` and values ``[B]`` in float32."""
        dist_params, values, _ = ask(self.policy, batch.observations, batch.state, batch.starts)
        return dist_params.float(), values.float()

    def measure(self, segment: Segment) -> dict[str, float]:
        """Return the row of metrics, over a last pass's minibatches as the original does."""
        return metrics.measure(self, segment, segment.last_pass())

    def minibatch_order(self, sizes: Sizes) -> Tensor:
        """Draw this iteration's order, see `shuffled_units`: for every pass, and a last one."""
        stream = generator(self.seed, "minibatches", self.counters.iterations)
        order = shuffled_units(*sizes.orders, stream)
        return order if sizes.shared else order[:, distributed.own_share(sizes.mpi_workers)]

    def estimate_advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return advantages and value targets (TD(lambda) returns), ``[T, N]`` each."""
        rewards = rollout.rewards
        if self.reward_normalizer is not None:
            done = rollout.terminated | rollout.truncated
            rewards = self.reward_normalizer(rewards, done, rollout.valid)
        advantages = generalized_advantages(
            rewards,
            rollout.values,
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            bootstrap_truncation=self.bootstrap_truncation,
        )
        return advantages, advantages + rollout.values[:-1]

    @hooks.own
    def configure_callbacks(self) -> list[Any]:
        """Check the run before its first step."""
        checks.trainer(self.trainer, self)
        super().configure_callbacks()
        checks.data(self, self._datamodule)
        return []

    def sizes(self, num_envs: int, num_steps: int) -> Sizes:
        """Return how a rollout of all devices divides."""
        length = checks.unit_length(self.sequence_length, state_size(self.policy), num_steps)
        return Sizes.create(
            num_envs=num_envs,
            num_steps=num_steps,
            minibatch_size=self.minibatch_size,
            mpi_workers=self.mpi_workers,
            epochs=self.passes,
            devices=self.trainer.world_size,
            sequence_length=length,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of `learning_parameters`."""
        self.own_optimizer = loop.new_optimizer(self)
        return self.own_optimizer

    def learning_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the named parameters that `update` changes."""
        return loop.for_the_optimizer(self)

    @property
    def optimizer_name(self) -> str | None:
        """Name of the optimizer's class, None for one of the user's own."""
        configure = getattr(self.configure_optimizers, "__func__", None)  # None: LightningCLI's
        ours = configure is OnPolicyModule.configure_optimizers
        factory = getattr(self.optimizer_factory, "func", self.optimizer_factory)
        return factory.__name__ if ours and isinstance(factory, type) else None

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers(use_pl_optimizer=False)  # type: ignore[return-value]

    @hooks.own
    def on_train_start(self) -> None:
        """Start the clock; a restored optimizer gets its update path anew."""
        checks.optimizers(self.optimizers(), self.trainer)
        self.stop_when_spent()
        if self.trainer.should_stop and self._datamodule is not None:
            _log.warning("nothing to train: the budget of %s is spent", self._datamodule.budget)
        self.restart()
        take_as_asked(self, self._optimizer)
        loop.log_over_env_steps(self)
        if self.owes_evaluation:
            loop.make_up_evaluation(self)
        self._before = None  # of a fit that ended by an error
        self.clock.start(self.counters)

    @hooks.own
    def on_train_batch_end(self, *args: Any) -> None:
        """Let callbacks stop or save, after their own hook: they may log what they look at."""
        loop.ask_callbacks(self)

    def restart(self) -> None:
        """Go on as a resumed run does: no episode under way, update and acting made anew."""
        if self.reward_normalizer is not None:
            self.reward_normalizer.restart()
        self._update = self._acting = None
        give_own_memory(self, self._optimizer)

    @hooks.own
    def on_train_end(self) -> None:
        """Let go of what only this fit could use."""
        loop.log_over_lightnings_steps(self)
        self._update = self._acting = self._before = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one process, so that a copy can be made while training."""
        return {**super().__getstate__(), "_update": None, "_acting": None, "_before": None}
