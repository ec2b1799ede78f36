"""Everything that is only speed, behind two functions; without this folder the package works.

Each returns what it can make, or None and the reason: `make_update` minibatch steps as graphs,
`make_acting` a policy that acts as graphs. `ppo1_lightning.algorithms` asks them and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ppo1_lightning.distributed import all_max
from ppo1_lightning.errors import one_line
from ppo1_lightning.fast.acting import ActingGraphs
from ppo1_lightning.fast.check import unsupported
from ppo1_lightning.fast.update import GraphUpdate
from ppo1_lightning.functional.distributions import Distribution

__all__ = ["ActingGraphs", "GraphUpdate", "make_acting", "make_update", "unsupported"]


def make_update(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float | None,
    example: Sequence[Tensor],
    meanwhile: Callable[[], None],
    *,
    compiled: bool,
) -> tuple[GraphUpdate | None, str]:
    """Return minibatch steps as graphs, see `GraphUpdate`, or None and why not on every rank.

    ``meanwhile`` is called while compilers work.
    """
    update, reason = None, ""
    try:
        update = GraphUpdate(objective, optimizer, max_grad_norm, compiled=compiled)
        update.prepare(example, meanwhile)
    except Exception as error:  # whatever the compiler or the user's policy raises
        reason = one_line(error)
    # One rank that fails takes the others with it: they have to stay in step.
    if all_max(float(bool(reason)), example[0].device) > 0:
        return None, reason or "it did on another rank"
    return update, ""


def make_acting(
    policy: nn.Module,
    distribution: Distribution,
    observations: Tensor,
    noise: Tensor,
    pools: Sequence[slice],
    *,
    compiled: bool,
) -> tuple[ActingGraphs | None, str]:
    """Return how a policy acts as graphs in rollouts like this one, or None and why not."""
    if observations.device.type not in ("cpu", "cuda"):
        return None, "graphs act on the CPU and on CUDA devices only"
    try:
        graphs = ActingGraphs(policy, distribution, observations, noise, pools, compiled=compiled)
    except Exception as error:  # likewise
        return None, one_line(error)
    return graphs, ""
