"""Proximal policy optimisation: read `PPO.training_step` as the paper's algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppo1_lightning.algorithms import checks, metrics
from ppo1_lightning.algorithms.coefficients import Coefficients
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.distributed import all_sum
from ppo1_lightning.errors import ConfigurationError, check_flag, check_integer, check_number
from ppo1_lightning.functional.losses import clipped_surrogate, value_error, weighted_mean
from ppo1_lightning.policies.base import PolicyFactory
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.segment import Minibatch, Segment


class PPO(OnPolicyModule):
    """Proximal policy optimisation as in OpenAI baselines' ppo1 (Schulman et al. 2017).

    One batch is one iteration: a `Rollout` of the current policy, K epochs of minibatches over it.
    The defaults are the original's for MuJoCo; each option that deviates from it is off.

    Args:
        policy: makes the policy from (observation_space, action_space), see `OnPolicyModule`.
        update_epochs: passes over a rollout (``optim_epochs``).
        clip_coef: clip range of the probability ratio (``clip_param``).
        ent_coef: weight of the entropy bonus (``entcoeff``).
        vf_coef: weight of the value loss, the plain mean squared error.
        value_clip: range of ppo2's value clipping, None for none.
        anneal_ahead: anneal as of a rollout's last row and not of its first, as a2c does.
        target_kl: end the epochs of an iteration when the mean KL after one exceeds it.
        options: of every on-policy algorithm, see `OnPolicyModule`: minibatch_size, mpi_workers,
            learning_rate, optimizer, max_grad_norm, anneal, gamma, gae_lambda, ...

    Raises:
        ConfigurationError: see `OnPolicyModule`.
    """

    coefficients = ("clip_coef", "ent_coef", "vf_coef", "value_clip")

    def __init__(
        self,
        policy: PolicyFactory | None = None,
        *,
        update_epochs: int = 10,
        clip_coef: float = 0.2,
        ent_coef: float = 0.0,
        vf_coef: float = 1.0,
        value_clip: float | None = None,
        anneal_ahead: bool = False,
        target_kl: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(policy, **options)
        self.update_epochs = check_integer("update_epochs", update_epochs, at_least=1)
        self.clip_coef = check_number("clip_coef", clip_coef, at_least=0)
        self.ent_coef = check_number("ent_coef", ent_coef)
        self.vf_coef = check_number("vf_coef", vf_coef, at_least=0)
        self.value_clip = checks.limit("value_clip", value_clip)
        if value_clip is None and "value_clip" in self.anneal:
            raise ConfigurationError("anneal names value_clip, which is null; expected a range")
        self.now = Coefficients(
            clip_coef=clip_coef, ent_coef=ent_coef, vf_coef=vf_coef, value_clip=value_clip or 0.0
        )
        self.anneal_ahead = check_flag("anneal_ahead", anneal_ahead)
        self.target_kl = checks.limit("target_kl", target_kl)

    @property
    def passes(self) -> int:
        """Return how many epochs there are."""
        return self.update_epochs

    def begin(self, rollout: Rollout) -> Segment:
        """Begin an iteration, see `OnPolicyModule.begin`."""
        budget = getattr(self._datamodule, "budget", None)
        if self.anneal_ahead and budget is not None:
            spent = budget.fraction_spent_at_last_row(self.counters, rollout.rows)
            rollout = rollout._replace(fraction_spent=spent)
        return super().begin(rollout)

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Learn from one rollout: algorithm 1 of Schulman et al. 2017 for a given segment."""
        segment = self.begin(rollout)
        for minibatches in segment.minibatches(pass_by_pass=self.target_kl is not None):
            self.update(minibatches)
            if self.target_kl is not None and self.mean_kl(minibatches) > self.target_kl:
                break
        self.finish(rollout, segment)

    def loss(self, batch: Minibatch) -> Tensor:
        """Return this rank's share of the loss, equation 9 of Schulman et al. 2017 (negated).

        Override it for another objective: it may read any parameter, buffer and attribute.

        Args:
            batch: this rank's rows of a minibatch.

        Returns:
            A scalar; the sum over all ranks is the minibatch's loss.
        """
        terms = self.loss_terms(batch, *self.outputs(batch))
        policy = terms["loss/surrogate"] + terms["loss/entropy_penalty"]
        return policy + self.now.vf_coef * terms["loss/value"]

    def loss_terms(
        self, batch: Minibatch, dist_params: Tensor, values: Tensor
    ) -> dict[str, Tensor]:
        """Return this rank's shares of surrogate, entropy penalty and value error, scalars.

        Args:
            batch: rows of this rank.
            dist_params: ``[B, P]``, as the policy is now.
            values: ``[B]``, likewise.
        """
        # An invalid row's ratio is not held near 1 by any clipping, and could overflow.
        valid = batch.weights > 0
        log_probs = self.distribution.log_prob(dist_params, batch.actions)
        log_ratio = torch.where(valid, log_probs - batch.old_log_probs, 0.0)
        advantages = torch.where(valid, batch.advantages, 0.0)
        returns = torch.where(valid, batch.returns, 0.0)
        surrogate = clipped_surrogate(log_ratio.exp(), advantages, self.now.clip_coef)
        entropy = self.distribution.entropy(dist_params)
        value_clip = None if self.value_clip is None else self.now.value_clip
        error = value_error(values, returns, batch.old_values, value_clip)
        return {
            "loss/surrogate": -weighted_mean(surrogate, batch.weights),
            "loss/entropy_penalty": -self.now.ent_coef * weighted_mean(entropy, batch.weights),
            "loss/value": weighted_mean(error, batch.weights),
        }

    def terms(self, batch: Minibatch, dist_params: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Return this rank's shares of the loss's terms and of the fraction that is clipped."""
        log_probs = self.distribution.log_prob(dist_params, batch.actions)
        clipped = ((log_probs - batch.old_log_probs).exp() - 1).abs() > self.now.clip_coef
        return {
            **self.loss_terms(batch, dist_params, values),
            "clip_fraction": weighted_mean(clipped, batch.weights),
        }

    def measure(self, segment: Segment) -> dict[str, float]:
        """Return the metrics of an iteration, the clip range among them."""
        return {**super().measure(segment), "clip_coef": self.now.values["clip_coef"]}

    @torch.no_grad()
    def mean_kl(self, minibatches: Minibatch) -> float:
        """Return the mean of KL(old || new) over an epoch's minibatches and all ranks."""
        batch = minibatches.as_one()
        dist_params, _ = metrics.evaluate(self, batch.observations, batch.state, batch.starts)
        kl = self.distribution.kl(batch.old_dist_params, dist_params)
        weights = batch.weights / len(minibatches.weights)
        return all_sum(weighted_mean(kl, weights)).item()
