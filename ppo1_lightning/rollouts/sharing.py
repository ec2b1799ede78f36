"""What ranks do whose workers do not divide over them: each has the whole rollout."""

from __future__ import annotations

import itertools
import logging
import time

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ppo1_lightning.distributed import all_gather, all_sum, rank, world_size
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.sizes import Sizes

_say = rank_zero_only(logging.getLogger(__name__).info)


def gather(rollout: Rollout, *estimates: Tensor) -> tuple[Rollout, *tuple[Tensor, ...]]:
    """Return the rollout of all ranks' environments, and estimates ``[T, N]``, on every rank."""

    def whole(field: Tensor) -> Tensor:
        numbers = field.unsqueeze(-1).contiguous().view(torch.uint8)  # gloo sends not all dtypes
        gathered = all_gather(numbers, dim=1)[:, : rollout.num_envs]
        return gathered.contiguous().view(field.dtype).squeeze(-1)

    names = ("observations", "actions", "values", "dist_params", "valid", "states", "starts")
    fields = {name: getattr(rollout, name) for name in names}
    gathered = {k: whole(field) for k, field in fields.items() if field is not None}
    return rollout._replace(**gathered), *map(whole, estimates)


def own_units(units: Tensor) -> tuple[Tensor, bool]:
    """Return this rank's share of minibatches' units ``[..., u]``, and whether it has one.

    Where there are fewer units than ranks it has a copy of the first, of which nothing is learned.
    """
    own = units.tensor_split(world_size(), -1)[rank()]
    return (own, True) if own.shape[-1] else (units[..., :1], False)


def tell_cost(rollout: Rollout, sizes: Sizes, gradient: Tensor) -> None:
    """Measure what it costs that devices share environments, and say it. Every rank calls it.

    Args:
        gradient: numbers, as many as each step of the optimizer sums over the devices.
    """
    all_sum(gradient)  # the first one takes longer
    times = [time.perf_counter()]
    for exchange in (lambda: gather(rollout), lambda: all_sum(gradient)):
        exchange()
        if gradient.is_cuda:
            torch.cuda.synchronize(gradient.device)
        times.append(time.perf_counter())
    gathering, summing = (1000 * (b - a) for a, b in itertools.pairwise(times))
    _say(
        "%d devices share %d environment%s%s: each has the whole rollout, gathered once an "
        "iteration (%.1f ms), and %s; an optimizer step (%d an iteration) "
        "waits %.1f ms for the sum of gradients, as on any several devices",
        *(sizes.devices, sizes.num_envs, "s" if sizes.num_envs > 1 else "", sizes.and_copies),
        *(gathering, _takes(sizes), sizes.minibatches * sizes.epochs, summing),
    )


def _takes(sizes: Sizes) -> str:
    rows, idle = sizes.minibatch_rows_per_device, sizes.idle_devices
    of_all = f"of a minibatch's {sizes.minibatch_size} rows"
    if idle:
        return f"{sizes.devices - idle} of them take {rows} {of_all}, {idle} none"
    units = sizes.minibatch_size // sizes.sequence_length
    return f"takes {'at most ' if units % sizes.devices else ''}{rows} {of_all}"
