"""What a run has used up, and what it tells its loggers.

Rows go to the loggers directly, over environment steps: Lightning would call each logger's ``save``
after every row, and put them over its own count of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ppo1_lightning import distributed
from ppo1_lightning.functional.advantages import explained_variance
from ppo1_lightning.functional.losses import weighted_mean
from ppo1_lightning.policies import base
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.evaluation import Episodes
from ppo1_lightning.rollouts.segment import Minibatch, Segment

if TYPE_CHECKING:
    from ppo1_lightning.algorithms.on_policy import OnPolicyModule
    from ppo1_lightning.algorithms.policy_module import PolicyModule


def count(module: OnPolicyModule, rollout: Rollout) -> float:
    """Count an iteration; return the norm of the policy's parameters, alike on all ranks."""
    counters, ranks = module.counters, module.trainer.world_size
    weights = torch.cat([p.detach().flatten() for p in module.policy.parameters()])
    sums = torch.stack([rollout.valid.sum(), weights.norm() / ranks])
    transitions, norm = distributed.all_sum(sums.double()).tolist()
    counters.iterations += 1
    counters.env_steps += rollout.rows
    counters.transitions += int(transitions)
    counters.episodes += module.episodes.update(rollout.episode_returns, rollout.episode_lengths)
    counters.seconds += distributed.all_max(module.clock.lap(), module.device)
    _show_callbacks(module, {"episode_return_mean": module.episodes.return_mean})
    return norm


def evaluate(module: OnPolicyModule, *rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the policy says of many rows, see `policies.base.evaluate`, by its update's path.

    ``rows`` are observations, state and starts.
    """
    with nullcontext() if module._update is None else module._update.evaluating():
        return base.evaluate(module.policy, *rows)


@torch.no_grad()
def measure(module: OnPolicyModule, segment: Segment, batch: Minibatch) -> dict[str, float]:
    """Return means of an algorithm's `terms`, KL(old || new) and entropy over all ranks, and more.

    Args:
        batch: the segment's rows, weighted as their means are to be.
    """
    dist_params, values = evaluate(module, batch.observations, batch.state, batch.starts)
    kl = module.distribution.kl(batch.old_dist_params, dist_params)
    shares = {
        **module.terms(batch, dist_params, values),
        "kl": weighted_mean(kl, batch.weights),
        "entropy": weighted_mean(module.distribution.entropy(dist_params), batch.weights),
    }
    total = distributed.all_sum(torch.stack([share.double() for share in shares.values()]))
    optimizer: Any = module.optimizers(use_pl_optimizer=False)
    explained = explained_variance(segment.returns, segment.old_values, segment.valid)
    return {
        **dict(zip(shares, total.tolist(), strict=True)),
        "explained_variance": explained,
        "learning_rate": optimizer.param_groups[0]["lr"],
    }


def log_row(module: OnPolicyModule, measured: dict[str, float]) -> None:
    """Write a row of metrics, those of the run's counters first."""
    counters = module.counters
    module.metrics = {
        "env_steps": counters.env_steps,
        "iteration": counters.iterations,
        "episodes": counters.episodes,
        "episode_return_mean": module.episodes.return_mean,
        "episode_length_mean": module.episodes.length_mean,
        **measured,
        "steps_per_second": module.clock.steps_per_second(counters),
    }
    for logger in module.trainer.loggers:
        logger.log_metrics(module.metrics, step=counters.env_steps)
    _show_callbacks(module, module.metrics)


def _show_callbacks(module: OnPolicyModule, numbers: Mapping[str, float]) -> None:
    """Let callbacks monitor numbers, as `module.log` would, without its cost for each of them."""
    tensors = torch.tensor([float(number) for number in numbers.values()]).unbind()
    module.trainer.callback_metrics.update(zip(numbers, tensors, strict=True))


def log_evaluation(module: PolicyModule, episodes: Episodes) -> None:
    """Write what the episodes of an evaluation say, and let `Trainer.test` return it."""
    module.evaluated = episodes
    metrics = {f"evaluation/{name}": value for name, value in episodes.summary().items()}
    # `Trainer.test` and `Trainer.validate` return and print what Lightning logs, but then it
    # writes the rows too, over a "step" that we have to tell. In a fit we write them.
    fitting = module.trainer.state.fn == TrainerFn.FITTING
    x_axis = {"step": float(module.counters.env_steps)} if module.trainer.loggers else {}
    told = metrics if fitting else metrics | x_axis
    logged = False if fitting else None  # None: yes, without a warning where there is no logger
    module.log_dict(told, logger=logged, batch_size=1, sync_dist=True)  # alike on all ranks
    if module.trainer.sanity_checking:
        return
    module.metrics = {**module.metrics, **metrics}
    if fitting:
        module.evaluated_in, module.owes_evaluation = module.counters.iterations, False
        for logger in module.trainer.loggers:
            logger.log_metrics(metrics, step=module.counters.env_steps)
