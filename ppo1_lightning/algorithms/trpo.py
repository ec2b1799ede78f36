"""Trust region policy optimisation: read `TRPO.training_step` as the paper's algorithm 1."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppo1_lightning.algorithms import metrics
from ppo1_lightning.algorithms.coefficients import Coefficients
from ppo1_lightning.algorithms.flat import FlatParameters, acting_and_valuing
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.algorithms.surface import (
    EagerSurface,
    SummedSurface,
    Surface,
    Surfaces,
    make_graphs,
)
from ppo1_lightning.algorithms.update import Update
from ppo1_lightning.errors import check_choice, check_integer, check_number
from ppo1_lightning.functional import trust_region
from ppo1_lightning.functional.losses import weighted_mean
from ppo1_lightning.optimizers import TensorFlowAdam
from ppo1_lightning.policies.base import PolicyFactory
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.segment import Minibatch, Segment

_log = logging.getLogger(__name__)

VALUE_ADAM = partial(TensorFlowAdam, eps=1e-8)  # the original's


class TRPO(OnPolicyModule):
    """Trust region policy optimisation as in OpenAI baselines' trpo_mpi (Schulman et al. 2015).

    The policy takes one step an iteration; then minibatches fit the value function, and only they
    know ``minibatch_size``, ``learning_rate``, ``optimizer`` and ``max_grad_norm``. The defaults
    are the original's for MuJoCo (``trpo_mpi/run_mujoco.py``).

    Args:
        policy: see `OnPolicyModule`; no parameter may both choose actions and estimate values.
        max_kl: size of the trust region, a mean KL divergence in nats.
        cg_iters: conjugate gradient steps at most.
        cg_damping: multiple of the identity that is added to the Fisher matrix.
        fisher_every: the Fisher matrix is that of every n-th row.
        line_search_steps: steps that are tried at most, each half as long as the one before.
        ent_coef: weight of the entropy bonus (``entcoeff``).
        vf_iters: passes over a rollout that fit the value function.
        options: of every on-policy algorithm, see `OnPolicyModule`.

    Raises:
        ConfigurationError: see `OnPolicyModule`.
    """

    coefficients = ("ent_coef",)
    rejected_steps: Tensor  # 0-d int64: iterations so far in which no step was good

    def __init__(
        self,
        policy: PolicyFactory | None = None,
        *,
        max_kl: float = 0.01,
        cg_iters: int = 10,
        cg_damping: float = 0.1,
        fisher_every: int = 5,
        line_search_steps: int = 10,
        ent_coef: float = 0.0,
        vf_iters: int = 5,
        learning_rate: float = 1e-3,
        optimizer: Callable[..., torch.optim.Optimizer] = VALUE_ADAM,
        gae_lambda: float = 0.98,
        **options: Any,
    ) -> None:
        options |= {
            "learning_rate": learning_rate,
            "optimizer": optimizer,
            "gae_lambda": gae_lambda,
        }
        super().__init__(policy, **options)
        choices = ("worker", "rollout", "none")  # the policy knows no minibatches
        check_choice("normalize_advantages", self.normalize_advantages, choices)
        self.max_kl = check_number("max_kl", max_kl, above=0)
        self.cg_iters = check_integer("cg_iters", cg_iters, at_least=1)
        self.cg_damping = check_number("cg_damping", cg_damping, at_least=0)
        self.fisher_every = check_integer("fisher_every", fisher_every, at_least=1)
        self.line_search_steps = check_integer("line_search_steps", line_search_steps, at_least=1)
        self.ent_coef = check_number("ent_coef", ent_coef)
        self.now = Coefficients(ent_coef=ent_coef)
        self.vf_iters = check_integer("vf_iters", vf_iters, at_least=1)
        self.step_size = 0.0  # the last step's share of the full one
        self._graphs: tuple[Update | None, Surfaces | None] = None, None  # and what they go with
        self.register_buffer("rejected_steps", torch.zeros((), dtype=torch.int64))

    @property
    def passes(self) -> int:
        """Return how many passes fit the value function."""
        return self.vf_iters

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """Learn from one rollout: algorithm 1 of Schulman et al. 2015, then the value function."""
        segment = self.begin(rollout)
        self.improve_policy(segment.whole(), segment.every(self.fisher_every))
        for minibatches in segment.minibatches():
            self.update(minibatches)
        self.finish(rollout, segment)

    def improve_policy(self, batch: Minibatch, fisher_batch: Minibatch) -> None:
        """Step along the natural gradient to the trust region's edge, then search back (app. C).

        ``batch`` is all of this rank's rows; the Fisher matrix, the Hessian of the KL at the old
        policy, is that of ``fisher_batch``.
        """
        policy = self.acting_parameters
        start = policy.get()
        surface = SummedSurface(self._surface(policy, batch, fisher_batch))
        before, gradient = surface.gain_and_gradient()
        self.step_size = 0.0
        if gradient.abs().max() <= 1e-8:  # the original's zero
            return
        hessian = surface.hessian()

        def fisher(vector: Tensor) -> Tensor:
            return hessian(vector) + self.cg_damping * vector

        direction = trust_region.conjugate_gradient(fisher, gradient, self.cg_iters)
        full_step = trust_region.step_to_boundary(direction, fisher(direction), self.max_kl)

        def at(step_size: float) -> tuple[float, float]:
            policy.set(start + step_size * full_step)
            return surface.gain_and_kl()

        self.step_size = trust_region.line_search(
            at, before, self.max_kl, steps=self.line_search_steps
        )
        if not self.step_size:
            policy.set(start)
            self.rejected_steps += 1

    def _surface(
        self, policy: FlatParameters, batch: Minibatch, fisher_batch: Minibatch
    ) -> Surface:
        """Return gain and KL of these rows: by graphs where the update goes by them."""
        made_for, graphs = self._graphs
        if made_for is not self._update:
            with self.clock.paused():  # compiling is not training
                graphs = make_graphs(self, policy, batch, fisher_batch)
        if graphs is not None and (changed := graphs.outdated()):
            _log.warning("policy step: eager from here on, for %s has changed", changed)
            graphs = None
        self._graphs = self._update, graphs
        if graphs is not None:
            return graphs(batch, fisher_batch)
        return EagerSurface(self.gain_and_kl, policy, batch, fisher_batch)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one process."""
        return {**super().__getstate__(), "_graphs": (None, None)}

    def gain_and_kl(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Return this rank's shares of mean(ratio * advantage + ent_coef * entropy) and mean KL."""
        dist_params, values = self.outputs(batch)
        terms = self.terms(batch, dist_params, values)
        kl = self.distribution.kl(batch.old_dist_params, dist_params)
        gain = -terms["loss/surrogate"] - terms["loss/entropy_penalty"]
        return gain, weighted_mean(kl, batch.weights)

    def loss(self, batch: Minibatch) -> Tensor:
        """Return this rank's share of the value function's mean squared error."""
        return self.terms(batch, *self.outputs(batch))["loss/value"]

    def terms(self, batch: Minibatch, dist_params: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Return this rank's shares of surrogate, entropy penalty and value error, scalars."""
        valid = batch.weights > 0  # the ratio of an invalid row could overflow
        log_probs = self.distribution.log_prob(dist_params, batch.actions)
        ratio = torch.where(valid, log_probs - batch.old_log_probs, 0.0).exp()
        gained = ratio * torch.where(valid, batch.advantages, 0.0)
        entropy = self.distribution.entropy(dist_params)
        error = (values - torch.where(valid, batch.returns, 0.0)).square()
        return {
            "loss/surrogate": -weighted_mean(gained, batch.weights),
            "loss/entropy_penalty": -self.now.ent_coef * weighted_mean(entropy, batch.weights),
            "loss/value": weighted_mean(error, batch.weights),
        }

    def measure(self, segment: Segment) -> dict[str, float]:
        """Return the metrics of an iteration, over all rows as the line search sees them."""
        taken = {"step_size": self.step_size, "rejected_steps": self.rejected_steps.item()}
        return {**metrics.measure(self, segment, segment.whole()), **taken}

    def learning_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the value function's; what chooses actions learns without an optimizer."""
        _, valuing = acting_and_valuing(self.policy, self.spaces[0])
        return [(f"policy.{name}", parameter) for name, parameter in valuing.items()]

    @property
    def acting_parameters(self) -> FlatParameters:
        """The parameters that choose actions, as one vector."""
        acting, _ = acting_and_valuing(self.policy, self.spaces[0])
        return FlatParameters(acting.values())
