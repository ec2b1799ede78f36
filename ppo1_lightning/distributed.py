"""Collectives that do nothing on a single device: the only place that asks how many ranks run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ppo1_lightning.errors import RunError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def local_ranks() -> tuple[int, int]:
    """Return how many ranks share this process's cores and which one this is, if that is known."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun and `commands.ranks`
        ranks = max(1, int(os.environ["LOCAL_WORLD_SIZE"]))
        return ranks, int(os.environ.get("LOCAL_RANK", 0))
    if "SLURM_LOCALID" in os.environ and world_size() > 1:
        if re.search("mask|map|rank|ldom", os.environ.get("SLURM_CPU_BIND", "")):
            return 1, 0  # srun has divided the cores already
        tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return int(tasks[0]) if tasks else 1, int(os.environ["SLURM_LOCALID"])
    return world_size(), rank()


def own_share(total: int) -> slice:
    """Return this rank's part of ``total`` things that are divided evenly, in order of ranks."""
    share = total // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def own_environments(num_envs: int) -> list[int]:
    """Return which of a run's environments this rank steps, as many on every rank.

    Where they do not divide, the last ranks go on with the first ones again: `own_copies` of them,
    of which nothing is counted or learned.
    """
    share = -(-num_envs // world_size())
    return [i % num_envs for i in range(rank() * share, (rank() + 1) * share)]


def own_copies(num_envs: int) -> int:
    """Return how many of this rank's environments are copies of other ranks': its last ones."""
    share = -(-num_envs // world_size())
    return min(share, max(0, (rank() + 1) * share - num_envs))


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over all ranks, in place where there are several."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_max(value: float, device: torch.device) -> float:
    """Return the largest ``value`` of all ranks, the same on every rank."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()


def fail_together(work: Callable[[], T], device: torch.device) -> T:
    """Return ``work()``; where it fails on one rank, raise its error on all of them.

    So they end in the same place, where they can still save the run together. Each of them has to
    call it.

    Raises:
        RunError: of the first rank that has one.
    """
    result, error = None, None
    try:
        result = work()
    except RunError as its_error:
        error = its_error
    if not all_max(float(error is not None), device):
        return cast(T, result)
    if world_size() > 1:
        errors: list[RunError | None] = [None] * world_size()
        dist.all_gather_object(errors, error)
        error = next(e for e in errors if e is not None)
    assert error is not None
    error.on_all_ranks = True
    raise error


def gather_objects(own: T) -> list[T]:
    """Return the objects of all ranks, in their order."""
    everyone: list[Any] = [own] * world_size()
    if len(everyone) > 1:
        dist.all_gather_object(everyone, own)
    return everyone


def all_gather(tensor: Tensor, dim: int) -> Tensor:
    """Concatenate equally shaped tensors of all ranks along ``dim``, in the order of ranks."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim)
