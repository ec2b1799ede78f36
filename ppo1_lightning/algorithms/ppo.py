"""PPO as a LightningModule: read `PPO.training_step` as the paper's pseudocode."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any, Literal, Self, cast

import torch
from gymnasium import Space
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ppo1_lightning import distributed
from ppo1_lightning.algorithms import entry as checkpoints
from ppo1_lightning.algorithms.guard import Snapshot
from ppo1_lightning.algorithms.update import PATHS, GraphUpdate, Update, make_update
from ppo1_lightning.errors import (
    ConfigurationError,
    DivergenceError,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    one_line,
)
from ppo1_lightning.functional.advantages import (
    explained_variance,
    generalized_advantages,
    group_moments,
    standardize,
)
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.functional.losses import clipped_surrogate, value_error, weighted_mean
from ppo1_lightning.functional.schedules import SCHEDULES
from ppo1_lightning.optimizers import TensorFlowAdam, TensorFlowRMSprop
from ppo1_lightning.policies.base import PolicyFactory
from ppo1_lightning.policies.normalization import RewardNormalizer
from ppo1_lightning.policies.spaces import describe, distribution_for, name_of
from ppo1_lightning.rollouts.acting import (
    WHOLE,
    ActingGraphs,
    ModuleActing,
    acting_on_accelerator,
    choose_actions,
)
from ppo1_lightning.rollouts.budget import Counters
from ppo1_lightning.rollouts.collector import Acting, Rollout
from ppo1_lightning.rollouts.episodes import EpisodeStatistics
from ppo1_lightning.rollouts.evaluation import Episodes
from ppo1_lightning.rollouts.seeding import derive_seed, generator
from ppo1_lightning.rollouts.segment import (
    Minibatch,
    Segment,
    in_worker_order,
    minibatch_rows,
    minibatch_weights,
    shuffled_rows,
)
from ppo1_lightning.rollouts.sizes import Plan

_log = logging.getLogger(__name__)

EVALUATION_BATCH = 2048
"""Rows that the policy evaluates at once outside of the minibatch steps."""

GATHERED_BYTES = 32 * 2**20
"""Bytes of observations up to which minibatches of several epochs are gathered at once."""


class PPO(LightningModule):
    """Proximal policy optimisation as in OpenAI baselines' ppo1 (Schulman et al. 2017).

    One batch is one iteration: a `Rollout` of the current policy, K epochs of minibatches over it.
    The defaults are the original's for MuJoCo; each option that deviates from it is off.

    Args:
        policy: makes the policy from (observation_space, action_space); None only when a
            checkpoint names a built-in one. See `policies.base.ActorCritic` for what it must be.
        minibatch_size: rows of a minibatch, all devices together (``optim_batchsize`` times the
            number of MPI workers). None: all rows of a rollout.
        update_epochs: passes over a rollout (``optim_epochs``).
        num_workers: the original's MPI processes: each standardises its own advantages and gives
            the same number of rows to each minibatch. None: see `Plan.create`.
        learning_rate: Adam's step size (``optim_stepsize``).
        schedule: ``"constant"`` or ``"linear"`` (to 0 at the end of the budget).
        optimizer: ``"adam"`` or ``"rmsprop"`` (a2c's, see `TensorFlowRMSprop`).
        adam_epsilon: epsilon of either optimizer.
        adam_epsilon_style: of Adam, ``"tensorflow"`` (the original's, see `TensorFlowAdam`) or
            ``"torch"``.
        clip_coef: clip range of the probability ratio (``clip_param``).
        anneal_clip: whether the schedule applies to the clip range too.
        ent_coef: weight of the entropy bonus (``entcoeff``).
        vf_coef: weight of the value loss, the plain mean squared error.
        gamma: discount factor.
        gae_lambda: lambda of the generalised advantage estimation (``lam``).
        normalize_advantages: ``"worker"`` (the original's: over a worker's segment, population
            std, no epsilon), ``"rollout"``, ``"minibatch"`` (epsilon 1e-8) or ``"none"``.
        bootstrap_truncation: add V(final observation) where a time limit ended an episode; the
            original takes a time limit as a failure.
        value_clip: range of ppo2's value clipping, None for none.
        max_grad_norm: largest norm of the gradient, None for no clipping.
        target_kl: end the epochs of an iteration when the mean KL after one exceeds it.
        normalize_returns: divide rewards by the running std of the discounted return.
        compile: True, ``"trace"``, False or ``"auto"``, see `update.make_update`.
        seed: of the initial weights and of the order of minibatches.
        log_every: iterations between two rows of metrics, for which the policy is evaluated.
        observation_space, action_space: None takes them from the data module.

    Raises:
        ConfigurationError: a value out of range, or (from Lightning's hooks) sizes that do not
            divide, a strategy or precision that is not supported, a checkpoint that does not fit.
    """

    policy: nn.Module
    distribution: Distribution

    def __init__(
        self,
        policy: PolicyFactory | None = None,
        *,
        minibatch_size: int | None = 64,
        update_epochs: int = 10,
        num_workers: int | None = None,
        learning_rate: float = 3e-4,
        schedule: Literal["constant", "linear"] = "constant",
        optimizer: Literal["adam", "rmsprop"] = "adam",
        adam_epsilon: float = 1e-5,
        adam_epsilon_style: Literal["tensorflow", "torch"] = "tensorflow",
        clip_coef: float = 0.2,
        anneal_clip: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 1.0,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        normalize_advantages: Literal["worker", "rollout", "minibatch", "none"] = "worker",
        bootstrap_truncation: bool = False,
        value_clip: float | None = None,
        max_grad_norm: float | None = None,
        target_kl: float | None = None,
        normalize_returns: bool = False,
        compile: bool | Literal["auto", "trace"] = "auto",
        seed: int = 0,
        log_every: int = 1,
        observation_space: Space[Any] | None = None,
        action_space: Space[Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["policy", "observation_space", "action_space"])
        self.automatic_optimization = False
        if minibatch_size is not None:
            check_integer("minibatch_size", minibatch_size, at_least=1)
        self.minibatch_size = minibatch_size
        self.update_epochs = check_integer("update_epochs", update_epochs, at_least=1)
        self.num_workers = num_workers  # checked with the other sizes, see `_plan`
        self.learning_rate = check_number("learning_rate", learning_rate, at_least=0)
        check_choice("schedule", schedule, SCHEDULES)
        self.schedule = schedule
        check_choice("optimizer", optimizer, ("adam", "rmsprop"))
        self.optimizer_name = optimizer
        self.adam_epsilon = check_number("adam_epsilon", adam_epsilon, at_least=0)
        check_choice("adam_epsilon_style", adam_epsilon_style, ("tensorflow", "torch"))
        self.adam_epsilon_style = adam_epsilon_style
        self.clip_coef = check_number("clip_coef", clip_coef, at_least=0)
        self.anneal_clip = check_flag("anneal_clip", anneal_clip)
        self.ent_coef = check_number("ent_coef", ent_coef)
        self.vf_coef = check_number("vf_coef", vf_coef, at_least=0)
        self.gamma = check_number("gamma", gamma, at_least=0, at_most=1)
        self.gae_lambda = check_number("gae_lambda", gae_lambda, at_least=0, at_most=1)
        choices = ("worker", "rollout", "minibatch", "none")
        check_choice("normalize_advantages", normalize_advantages, choices)
        self.normalize_advantages = normalize_advantages
        self.bootstrap_truncation = check_flag("bootstrap_truncation", bootstrap_truncation)
        self.value_clip = _check_limit("value_clip", value_clip)
        self.max_grad_norm = _check_limit("max_grad_norm", max_grad_norm)
        self.target_kl = _check_limit("target_kl", target_kl)
        normalize_returns = check_flag("normalize_returns", normalize_returns)
        self.reward_normalizer = RewardNormalizer(self.gamma) if normalize_returns else None
        check_choice("compile", compile, PATHS)
        self.compile_update = compile
        self.seed = check_integer("seed", seed, at_least=0)
        self.log_every = check_integer("log_every", log_every, at_least=1)

        self.counters = Counters()
        self.metrics: dict[str, float] = {}
        self.episodes = EpisodeStatistics()
        if isinstance(policy, nn.Module):
            raise ConfigurationError(
                f"policy is a {type(policy).__name__} already made, expected what makes one from "
                f"(observation_space, action_space), such as the class {type(policy).__name__}"
            )
        self._policy_factory = policy
        self._spaces = (observation_space, action_space)
        self._update: Update | None = None
        # None: the policy acts as the module it is
        self._acting: Callable[[Tensor, Tensor, Sequence[slice]], Acting | None] | None = None
        self._pools: Sequence[slice] = WHOLE  # of the last rollout
        self.evaluated: Episodes | None = None  # of the last validation or test
        self._clock = 0.0
        self._logged = copy(self.counters)  # as of the last row of metrics
        self._before: Callable[[], None] | None = None  # goes back to before the update

    # ---------------------------------------------------------------- the algorithm

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Learn from one rollout: algorithm 1 of Schulman et al. 2017 for a given segment."""
        self._check_on_policy(rollout)
        self._before = self._way_back()
        num_steps, local_envs = rollout.rewards.shape
        plan = self._plan(local_envs * self.trainer.world_size, num_steps)
        multiplier = SCHEDULES[self.schedule](rollout.fraction_spent)
        learning_rate = self.learning_rate * multiplier
        self._set_learning_rate(learning_rate)
        clip_coef = self.clip_coef * (multiplier if self.anneal_clip else 1.0)

        # First the statistics, then the old policy: so the ratio starts at 1.
        self._update_observation_statistics(rollout)
        segment = self._segment(rollout, plan)
        orders = minibatch_rows(self.minibatch_order(plan).to(self.device), plan.rows_per_worker)
        weights = minibatch_weights(segment.valid[orders])
        clip = torch.tensor(clip_coef, device=self.device)

        at_once = self._epochs_at_once(segment)
        epochs = zip(orders[:-1].split(at_once), weights[:-1].split(at_once), strict=True)
        for rows, row_weights in ((r.flatten(0, 1), w.flatten(0, 1)) for r, w in epochs):
            minibatches = self._minibatches(segment, rows, row_weights)
            if self._update is None:
                self._choose_path(minibatches, clip, plan, rollout)
            self._take_steps(minibatches, clip)
            if self.target_kl is None:
                continue
            if self._mean_kl(segment, minibatches, rows) > self.target_kl:
                break

        self._finish_iteration(rollout, segment, plan)
        if self.counters.iterations % self.log_every == 0 or self.trainer.should_stop:
            metrics = self._evaluate(segment, orders[-1], weights[-1], clip)
            self._log_row({**metrics, "learning_rate": learning_rate, "clip_coef": clip_coef})
        self._count_optimizer_step()  # of whole iterations only

    def loss(
        self, parameters: Tensor, values: Tensor, minibatch: Minibatch, clip_coef: Tensor
    ) -> Tensor:
        """Return this rank's share of the loss, equation 9 of Schulman et al. 2017 (negated).

        Override it for another objective; it must be a pure function of its arguments. It is
        traced once: what it reads from elsewhere, `ent_coef` for one, stays as it was then
        (``compile=False`` reads it at every step).

        Args:
            parameters: ``[B, P]`` of the action distribution.
            values: ``[B]``.
            clip_coef: scalar tensor.
        """
        surrogate, entropy_penalty, value = self._loss_terms(
            parameters, values, minibatch, clip_coef
        )
        return surrogate + entropy_penalty + self.vf_coef * value

    def _loss_terms(
        self, parameters: Tensor, values: Tensor, minibatch: Minibatch, clip_coef: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parameters, values = parameters.float(), values.float()  # half precision ends here
        log_probs = self.distribution.log_prob(parameters, minibatch.actions)
        # An invalid row's ratio is not held near 1 by any clipping, and could overflow.
        valid = minibatch.weights > 0
        log_ratio = torch.where(valid, log_probs - minibatch.old_log_probs, 0.0)
        advantages = torch.where(valid, minibatch.advantages, 0.0)
        returns = torch.where(valid, minibatch.returns, 0.0)
        surrogate = clipped_surrogate(log_ratio.exp(), advantages, clip_coef)
        error = value_error(values, returns, minibatch.old_values, self.value_clip)
        entropy = self.distribution.entropy(parameters)
        return (
            -weighted_mean(surrogate, minibatch.weights),
            -self.ent_coef * weighted_mean(entropy, minibatch.weights),
            weighted_mean(error, minibatch.weights),
        )

    def _segment(self, rollout: Rollout, plan: Plan) -> Segment:
        """Lay out what the epochs need, the old policy frozen as it is now."""
        advantages, returns = self._estimate_advantages(rollout)
        workers = plan.workers_per_device
        observations, actions = (
            in_worker_order(rows, workers) for rows in (rollout.observations, rollout.actions)
        )
        if self._acted_as_now():
            old_parameters = in_worker_order(rollout.parameters, workers)
        else:
            old_parameters, _ = self._evaluate_policy(observations)
        segment = Segment(
            observations=observations,
            actions=actions,
            advantages=in_worker_order(advantages, workers),
            returns=in_worker_order(returns, workers),
            old_values=in_worker_order(rollout.values[:-1], workers),
            old_parameters=old_parameters,
            old_log_probs=self.distribution.log_prob(old_parameters, actions),
            valid=in_worker_order(rollout.valid, workers),
        )
        return self._standardize_advantages(segment, workers)

    def _acted_as_now(self) -> bool:
        """Tell whether the policy acted with what it has before its update."""
        return getattr(self.policy, "observation_normalizer", None) is None

    def _estimate_advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
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

    def _standardize_advantages(self, segment: Segment, workers: int) -> Segment:
        """Standardise over each worker's segment, or over those of all ranks."""
        groups = {"worker": workers, "rollout": 1}.get(self.normalize_advantages)
        if groups is None:  # "none", or "minibatch", which has to wait for the minibatches
            return segment
        advantages = segment.advantages.view(groups, -1)
        valid = segment.valid.view(groups, -1)
        moments = group_moments(advantages, valid)
        if self.normalize_advantages == "rollout":
            moments = distributed.all_sum(moments)
        return segment._replace(advantages=standardize(advantages, valid, moments).flatten())

    def minibatch_order(self, plan: Plan) -> Tensor:
        """Draw this iteration's order of rows for every epoch and for the evaluation after them.

        Override it to replay a recorded order.

        Returns:
            ``[update_epochs + 1, workers_per_device, minibatches, worker_minibatch_size]`` int64,
            indices into the rows of each of this rank's workers.
        """
        order = shuffled_rows(
            plan.update_epochs + 1,
            plan.num_workers,
            plan.rows_per_worker,
            plan.worker_minibatch_size,
            generator(self.seed, "minibatches", self.counters.iterations),
        )
        return order[:, distributed.own_share(plan.num_workers)]

    def _epochs_at_once(self, segment: Segment) -> int:
        """Return how many epochs' minibatches to gather at once: fewer, larger operations."""
        if self.target_kl is not None:  # which is looked at after each
            return 1
        return max(1, GATHERED_BYTES // segment.observations.nbytes)

    def _minibatches(self, segment: Segment, rows: Tensor, weights: Tensor) -> Minibatch:
        """Gather minibatches of one epoch or several: ``[M, B, ...]`` each field."""
        minibatches = segment.minibatches(rows, weights)
        if self.normalize_advantages != "minibatch":
            return minibatches
        return minibatches._replace(advantages=self._minibatch_advantages(segment, rows))

    def _minibatch_advantages(self, segment: Segment, rows: Tensor) -> Tensor:
        """Standardise the advantages of each minibatch over its rows of all ranks."""
        advantages, valid = segment.advantages[rows], segment.valid[rows]
        moments = distributed.all_sum(group_moments(advantages, valid))
        return standardize(advantages, valid, moments, epsilon=1e-8)

    def _take_steps(self, minibatches: Minibatch, clip_coef: Tensor) -> None:
        """Take one optimizer step for each of the minibatches ``[M, B, ...]``."""
        assert self._update is not None
        self._update(minibatches, clip_coef)

    def _choose_path(
        self, minibatches: Minibatch, clip_coef: Tensor, plan: Plan, rollout: Rollout
    ) -> None:
        """Choose how this run updates and how it acts, and trace or compile it."""
        started = time.perf_counter()
        budget = getattr(self._datamodule, "budget", None)
        iterations = budget.iterations(plan.rows) if budget else None
        self._update = make_update(
            self.policy,
            self.loss,
            self._optimizer,
            max_grad_norm=self.max_grad_norm,
            compile=self.compile_update,
            optimizer_steps=iterations and iterations * plan.minibatches * plan.update_epochs,
            example=(Minibatch(*(field[0] for field in minibatches)), clip_coef),
        )
        if isinstance(self._update, GraphUpdate):  # then the policy may act as a graph too
            self._acting = self._make_acting(rollout, self._update.compiled)
        self._clock += time.perf_counter() - started  # compiling is not training

    def _make_acting(
        self, rollout: Rollout, compiled: bool
    ) -> Callable[[Tensor, Tensor, Sequence[slice]], Acting | None] | None:
        """Return `act` as a graph, None where that is not the same."""
        if type(self).act is not PPO.act:
            return None
        if self.device.type != "cpu":
            on_device = acting_on_accelerator(self.policy, self.distribution, self.device)
            return on_device if compiled else None
        observations = torch.cat([rollout.observations, rollout.observations[-1:]])
        noise = self.distribution.noise(*rollout.rewards.shape, generator=torch.Generator())
        arguments = (self.policy, self.distribution, observations, noise, self._pools)
        try:
            return ActingGraphs(*arguments, compiled=compiled)
        except Exception as error:  # whatever the compiler or the user's policy raises
            _log.warning("acting: as a module, since its graph failed: %s", one_line(error))
            return None

    def _update_observation_statistics(self, rollout: Rollout) -> None:
        normalizer = getattr(self.policy, "observation_normalizer", None)
        if normalizer is not None:
            normalizer.update(rollout.observations[rollout.valid])

    # ---------------------------------------------------------------- what is measured

    @torch.no_grad()
    def _evaluate_policy(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return distribution parameters ``[B, P]`` and values ``[B]``, in large batches."""
        outputs = [self.policy(part, None) for part in observations.split(EVALUATION_BATCH)]
        parameters, values, _ = zip(*outputs, strict=True)
        return torch.cat(parameters).float(), torch.cat(values).float()

    @torch.no_grad()
    def _mean_kl(self, segment: Segment, minibatches: Minibatch, rows: Tensor) -> float:
        """Return the mean KL(old || new) over an epoch's minibatches and all ranks."""
        parameters, _ = self._evaluate_policy(segment.observations)
        kl = self.distribution.kl(minibatches.old_parameters, parameters[rows])
        mean = weighted_mean(kl, minibatches.weights) / len(rows)
        return distributed.all_sum(mean).item()

    @torch.no_grad()
    def _evaluate(
        self, segment: Segment, rows: Tensor, weights: Tensor, clip_coef: Tensor
    ) -> dict[str, float]:
        """Evaluate the updated policy on the segment, as ppo1 does after the epochs."""
        parameters, values = self._evaluate_policy(segment.observations)
        if self.normalize_advantages == "minibatch":
            standardized = self._minibatch_advantages(segment, rows)
            segment = segment._replace(
                advantages=segment.advantages.index_put((rows,), standardized)
            )
        # The mean over minibatches of their means, in float64.
        share = weights.double() / len(rows)
        weights = torch.zeros_like(segment.returns, dtype=torch.float64).index_put((rows,), share)
        minibatch = segment.as_minibatch(weights)
        surrogate, entropy_penalty, value = self._loss_terms(
            parameters, values, minibatch, clip_coef
        )
        kl = self.distribution.kl(segment.old_parameters, parameters)
        log_probs = self.distribution.log_prob(parameters, segment.actions)
        clipped = ((log_probs - segment.old_log_probs).exp() - 1).abs() > clip_coef
        shares = {
            "loss/surrogate": surrogate,
            "loss/entropy_penalty": entropy_penalty,
            "loss/value": value,
            "kl": weighted_mean(kl, weights),
            "entropy": weighted_mean(self.distribution.entropy(parameters), weights),
            "clip_fraction": weighted_mean(clipped, weights),
        }
        total = distributed.all_sum(torch.stack(list(shares.values())))
        metrics = dict(zip(shares, total.tolist(), strict=True))
        for name, metric in metrics.items():
            self._check_finite(name, metric)
        explained = explained_variance(segment.returns, segment.old_values, segment.valid)
        return {**metrics, "explained_variance": explained}

    def _check_finite(self, name: str, metric: float) -> None:
        """Undo the update and raise an error where a metric, alike on all ranks, is no number."""
        if math.isfinite(metric):
            return
        iteration, norm = self.counters.iterations, self._gradient_norm()
        if not math.isfinite(norm):
            name, metric = "gradient_norm", norm
        if self._before is not None:
            self._before()
        raise DivergenceError(
            f"the policy diverged: {name} is {metric} after iteration {iteration}; "
            "a smaller learning_rate may help"
        )

    def _gradient_norm(self) -> float:
        """Return the norm of the running mean of gradients, 0 for an optimizer without one."""
        means = [s["exp_avg"].norm() for s in self._optimizer.state.values() if "exp_avg" in s]
        return torch.stack(means).norm().item() if means else 0.0

    def _way_back(self) -> Callable[[], None]:
        """Return what puts policy, statistics, optimizer and counters back as they are now."""
        state = Snapshot(self, self._optimizer)
        counters, episodes = copy(self.counters), self.episodes.state_dict()

        def go_back() -> None:
            state.restore(self, self._optimizer)
            self.counters = counters
            self.episodes.load_state_dict(episodes)

        return go_back

    def _finish_iteration(self, rollout: Rollout, segment: Segment, plan: Plan) -> None:
        norms = torch.stack([p.detach().norm() for p in self.policy.parameters()])
        sums = torch.stack([segment.valid.sum(), norms.norm() / self.trainer.world_size])
        transitions, norm = distributed.all_sum(sums.double()).tolist()
        counters = self.counters
        counters.iterations += 1
        counters.env_steps += plan.rows
        counters.transitions += int(transitions)
        counters.episodes += self.episodes.update(rollout.episode_returns, rollout.episode_lengths)
        now = time.perf_counter()
        counters.seconds += distributed.all_max(now - self._clock, self.device)
        self._clock = now
        self._check_finite("parameter_norm", norm)
        self._stop_when_spent()
        # For callbacks to monitor; loggers get their row from `_log_row`.
        self.log("episode_return_mean", self.episodes.return_mean, logger=False)

    def _log_row(self, metrics: dict[str, float]) -> None:
        counters, logged = self.counters, self._logged
        self._logged = copy(counters)
        seconds = max(counters.seconds - logged.seconds, 1e-9)
        self.metrics = {
            "env_steps": counters.env_steps,
            "iteration": counters.iterations,
            "episodes": counters.episodes,
            "episode_return_mean": self.episodes.return_mean,
            "episode_length_mean": self.episodes.length_mean,
            **metrics,
            "steps_per_second": (counters.env_steps - logged.env_steps) / seconds,
        }
        for logger in self.trainer.loggers:
            logger.log_metrics(self.metrics, step=counters.env_steps)

    # ---------------------------------------------------------------- evaluation

    def validation_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Report the episodes of an evaluation while training, see `evaluation.Evaluation`."""
        self._report_evaluation(episodes)

    def test_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Report the episodes of an evaluation; `Trainer.test` returns the numbers."""
        self._report_evaluation(episodes)

    def _report_evaluation(self, episodes: Episodes) -> None:
        self.evaluated = episodes
        metrics = {f"evaluation/{name}": value for name, value in episodes.summary().items()}
        # `Trainer.test` and `Trainer.validate` return and print what Lightning logs, but then it
        # writes the rows too, over a "step" that we have to tell. In a fit we write them.
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        x_axis = {"step": float(self.counters.env_steps)} if self.trainer.loggers else {}
        told = metrics if fitting else metrics | x_axis
        logged = False if fitting else None  # None: yes, without a warning where there is no logger
        self.log_dict(told, logger=logged, batch_size=1, sync_dist=True)  # alike on all ranks
        if self.trainer.sanity_checking:
            return
        self.metrics = {**self.metrics, **metrics}
        if fitting:
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=self.counters.env_steps)

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Leave out of the run's seconds what is not training; enter it on all ranks."""
        self.on_validation_start()
        try:
            yield
        finally:
            self.on_validation_end()

    def on_validation_start(self) -> None:
        """Stop the clock: evaluation is not training."""
        self._clock -= time.perf_counter()

    def on_validation_end(self) -> None:
        """Start it again."""
        self._clock += time.perf_counter()

    # ---------------------------------------------------------------- acting

    def forward(self, observations: Tensor) -> Any:
        """Return the policy's (distribution parameters, values, state) for ``[B, ...]``."""
        return self.policy(observations, None)

    @torch.inference_mode()
    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample actions ``[N, ...]``; all results are on this module's device.

        Args:
            observations: ``[N, *observation_shape]``.
            noise: ``[N, noise_size]``, from `Distribution.noise`.

        Returns:
            Actions, distribution parameters ``[N, P]`` and values ``[N]``.
        """
        inputs = observations.to(self.device), noise.to(self.device)
        with self._in_precision():
            return choose_actions(self.policy, self.distribution, *inputs)

    @torch.inference_mode()
    def act_greedily(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the most likely actions, otherwise as `act`; the noise is not looked at."""
        with self._in_precision():
            parameters, values, _ = self.policy(observations.to(self.device), None)
            parameters = parameters.float()
            return self.distribution.mode(parameters), parameters, values.float()

    def _in_precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the policy learns, so that it acts as it learns."""
        if self._trainer is None:
            return nullcontext()
        return self._trainer.precision_plugin.forward_context()

    def acting(self, observations: Tensor, noise: Tensor, pools: Sequence[slice] = WHOLE) -> Acting:
        """Return `act`, or a graph of it where there is one for rollouts like this one.

        Args:
            observations: ``[T + 1, N, *observation_shape]``.
            noise: ``[T, N, noise_size]``.
            pools: the environments that it acts in at once.
        """
        self._pools = pools
        as_graph = self._acting(observations, noise, pools) if self._acting is not None else None
        return as_graph or ModuleActing(self.act, observations, noise, self.device, pools)

    # ---------------------------------------------------------------- Lightning's hooks

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
            checkpoint_path, *args, weights_only=weights_only, **kwargs
        )

    def setup(self, stage: str) -> None:
        """Check the run before anything is built, and a checkpoint is read as plain data."""
        checkpoints.read_plain_data(self.trainer.strategy)
        if stage != "fit":
            return
        self._check_trainer()
        datamodule = self._datamodule
        if hasattr(datamodule, "num_envs") and hasattr(datamodule, "num_steps"):
            self._plan(datamodule.num_envs, datamodule.num_steps)
        if None not in self._spaces and hasattr(datamodule, "spaces"):
            self._check_spaces(*datamodule.spaces)

    def configure_model(self) -> None:
        """Build the policy, now that the spaces can be asked for."""
        if hasattr(self, "policy"):
            return
        if self._trainer is None and (None in self._spaces or self._policy_factory is None):
            return  # `load_from_checkpoint` comes by: the checkpoint will tell
        observation_space, action_space = self._spaces
        if observation_space is None or action_space is None:
            observation_space, action_space = self._spaces = self._datamodule_spaces()
        if self._policy_factory is None:
            raise ConfigurationError("PPO needs a policy, such as PPO(MlpPolicy), or a checkpoint")
        self.distribution = distribution_for(action_space)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "policy"))
            self.policy = self._policy_factory(observation_space, action_space)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of the policy's named parameters."""
        adam = TensorFlowAdam if self.adam_epsilon_style == "tensorflow" else torch.optim.Adam
        style = TensorFlowRMSprop if self.optimizer_name == "rmsprop" else adam
        parameters = self.policy.named_parameters()
        return style(parameters, lr=self.learning_rate, eps=self.adam_epsilon)

    def on_train_start(self) -> None:
        """Start the clock; a restored optimizer gets its update path anew."""
        self._stop_when_spent()
        if self.trainer.should_stop:
            _log.warning("nothing to train: the budget of %s is spent", self._datamodule.budget)
        self.restart()
        self._clock = time.perf_counter()
        self._logged = copy(self.counters)

    def restart(self) -> None:
        """Go on as a resumed run does: no episode under way, update and acting made anew."""
        if self.reward_normalizer is not None:
            self.reward_normalizer.restart()
        self._update = self._acting = None
        # Each in memory of its own, not in a flat vector: where it lies decides how sums round.
        for parameter in self.policy.parameters():
            parameter.data = parameter.data.clone()
            state = self._optimizer.state.get(parameter, {})
            state.update({name: tensor.clone() for name, tensor in state.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one process, so that a copy can be made while training."""
        return {**self.__dict__, "_update": None, "_acting": None, "_before": None}

    def on_train_end(self) -> None:
        """Let go of what only this fit could use."""
        self._update = self._acting = self._before = None

    def _stop_when_spent(self) -> None:
        """Stop when the budget is spent; every rank's counters say so at the same time."""
        budget = getattr(self._datamodule, "budget", None)
        if budget is not None and budget.fraction_spent(self.counters) >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, spaces and the policy's name and arguments, as plain containers."""
        checkpoint[checkpoints.KEY] = {
            **self._identity(),
            "counters": self.counters.state_dict(),
            "episodes": self.episodes.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, restore the counters, build the policy where needed."""
        entry = checkpoints.entry_of(checkpoint)
        if not hasattr(self, "policy"):
            self._policy_factory = self._policy_factory or checkpoints.policy_factory(entry)
            if None in self._spaces:
                self._spaces = checkpoints.restore_spaces(entry)
            self.configure_model()
        checkpoints.check_same_run(entry, self._identity())
        checkpoints.check_same_weights(checkpoint, self.state_dict())
        if self._trainer is not None and not checkpoint.get("optimizer_states"):
            raise ConfigurationError(
                "the checkpoint holds no optimizer state, so a run cannot be resumed from it"
            )
        self.counters = Counters(**entry["counters"])
        self.episodes.load_state_dict(entry["episodes"])

    # ---------------------------------------------------------------- details

    @property
    def _datamodule(self) -> Any:
        return getattr(self._trainer, "datamodule", None) if self._trainer else None

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers(use_pl_optimizer=False)  # type: ignore[return-value]

    def _datamodule_spaces(self) -> tuple[Space[Any], Space[Any]]:
        spaces = getattr(self._datamodule, "spaces", None)
        if spaces is None:
            raise ConfigurationError(
                "PPO does not know the spaces: fit it with a RolloutDataModule "
                "or pass observation_space and action_space"
            )
        return spaces

    def _check_spaces(self, observation_space: Space[Any], action_space: Space[Any]) -> None:
        ours, theirs = self._spaces, (observation_space, action_space)
        for kind, own, other in zip(("observation", "action"), ours, theirs, strict=True):
            if describe(cast(Space[Any], own)) != describe(other):
                raise ConfigurationError(
                    f"the policy is made for the {kind} space {name_of(cast(Space[Any], own))}, "
                    f"the environment has {name_of(other)}"
                )

    def _identity(self) -> dict[str, Any]:
        env = getattr(self._datamodule, "env", None)
        observation_space, action_space = self._spaces
        assert observation_space is not None
        assert action_space is not None
        return {
            "environment": env.id if env is not None else None,
            "spaces": checkpoints.spaces_entry(observation_space, action_space),
            "policy": checkpoints.policy_entry(self.policy),
        }

    def _plan(self, num_envs: int, num_steps: int) -> Plan:
        return Plan.create(
            num_envs=num_envs,
            num_steps=num_steps,
            minibatch_size=self.minibatch_size,
            num_workers=self.num_workers,
            update_epochs=self.update_epochs,
            devices=self.trainer.world_size,
        )

    def _check_trainer(self) -> None:
        strategy, precision = self.trainer.strategy, self.trainer.precision
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise ConfigurationError(
                f"strategy {type(strategy).__name__} is not supported, "
                "expected a single device or DDP (trainer.strategy=auto or ddp)"
            )
        check_choice("trainer.precision", precision, ("32-true", "bf16-mixed"))

    def _check_on_policy(self, rollout: Rollout) -> None:
        """Refuse data of an older policy, which prefetching would bring."""
        if rollout.policy_version != self.counters.iterations:
            raise RuntimeError(
                f"the rollout was collected after {rollout.policy_version} updates, the policy has "
                f"had {self.counters.iterations}: the data must not be fetched ahead "
                "(give the dataset a __len__, or limit_train_batches an integer)"
            )

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def _count_optimizer_step(self) -> None:
        """Tell Lightning of one step: an optimizer without gradients changes nothing.

        Lightning counts `global_step`, and so triggers checkpoints, by wrapped optimizer steps.
        """
        self._optimizer.zero_grad()
        self.optimizers().step()  # type: ignore[union-attr]


def _check_limit(key: str, value: float | None) -> float | None:
    return None if value is None else check_number(key, value, above=0)
