"""Everything that is only speed, behind a few functions; without this folder the package works.

Each returns what it can make, or None and the reason: `make_update` minibatch steps as graphs,
`make_acting` a policy that acts as graphs, `make_surfaces` what a trust region step asks for.
`compile_update` makes machine code of the steps, where that is `worth_compiling`.
`ppo1_lightning.algorithms` asks them and nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ppo1_lightning.distributed import all_max
from ppo1_lightning.errors import one_line
from ppo1_lightning.fast import check, native, processes
from ppo1_lightning.fast.acting import ActingGraphs
from ppo1_lightning.fast.check import unsupported
from ppo1_lightning.fast.compiler import Compiled, read_headers_ahead
from ppo1_lightning.fast.surface import SurfaceGraphs
from ppo1_lightning.fast.update import GraphUpdate
from ppo1_lightning.functional.distributions import Distribution

__all__ = [
    "ActingGraphs",
    "GraphUpdate",
    "SurfaceGraphs",
    "compile_update",
    "make_acting",
    "make_surfaces",
    "make_update",
    "unsupported",
    "worth_compiling",
]

_Made = TypeVar("_Made")

GAIN = 0.7
"""Share of a traced step's time that a compiled one saves, see docs/performance.md."""


def make_update(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float | None,
    example: Sequence[Tensor],
) -> tuple[GraphUpdate | None, str]:
    """Return minibatch steps as graphs, see `GraphUpdate`, or None and why not on every rank."""

    def make() -> GraphUpdate:
        update = GraphUpdate(objective, optimizer, max_grad_norm)
        update.prepare(example)
        return update

    return _on_every_rank(make, example[0].device)


def worth_compiling(update: GraphUpdate, steps: int | None, device: torch.device) -> Compiled:
    """Whether a run of so many steps (None: unknown) ends sooner compiled, told alike on all ranks.

    What the steps would take as they were traced is held against what compiling took the last time
    on this machine. Where that is too little, graphs that an earlier run has left are taken, and
    where nobody can know, the others are compiled if these have been.
    """
    seconds = (steps or 0) * update.step_seconds * GAIN
    pays = seconds >= native.seconds_of_compiling(device.type)
    pays |= steps is None and update.was_kept
    if all_max(float(not pays), device) == 0:
        return True
    return "kept" if all_max(float(not (pays or update.was_kept)), device) == 0 else False


def compile_update(
    update: GraphUpdate,
    example: Sequence[Tensor],
    compiled: Compiled,
    meanwhile: Callable[[], None],
) -> str:
    """Compile the steps, on every rank or none; return why not, "" for done.

    Args:
        compiled: True, or "kept" where `worth_compiling` says so.
        meanwhile: called while compilers work.
    """
    device = example[0].device
    started, was_kept = time.perf_counter(), update.was_kept

    def find_compiler() -> bool:  # before Python has written what is to be compiled
        return device.type != "cpu" or was_kept or bool(native.compiler())

    if reason := _on_every_rank(find_compiler, device)[1]:
        return reason
    if device.type == "cpu" and not was_kept:
        read_headers_ahead()  # while Python rewrites the graphs
    reason = _on_every_rank(lambda: update.compile(example, compiled, meanwhile), device)[1]
    if reason:
        update.go_on_traced()
    elif not was_kept:
        native.note_seconds_of_compiling(device.type, time.perf_counter() - started)
    return reason


def make_surfaces(
    objective: nn.Module,
    parameters: Sequence[nn.Parameter],
    eager: Any,
    batches: Sequence[Sequence[Tensor]],
    *,
    compiled: Compiled,
    was_kept: bool,
) -> tuple[SurfaceGraphs | None, str]:
    """Return gain and KL around a policy as graphs, see `SurfaceGraphs`, or None and why not.

    On every rank, once what they compute is what ``eager``, a surface of these batches, does.

    Args:
        was_kept: whether an earlier run has left the update's graphs, and so most likely these.
    """
    device, started = batches[0][0].device, time.perf_counter()

    def make() -> SurfaceGraphs:
        graphs = SurfaceGraphs(objective, parameters, batches, compiled=compiled)
        check.compare_surfaces(graphs(*batches), eager, parameters, graphs.names)
        return graphs

    graphs, reason = _on_every_rank(make, device)
    if graphs is not None and compiled is True and not was_kept:
        seconds = native.seconds_of_compiling(device.type) + time.perf_counter() - started
        native.note_seconds_of_compiling(device.type, seconds)  # beside the update's
    return graphs, reason


def make_acting(
    policy: nn.Module,
    distribution: Distribution,
    observations: Tensor,
    noise: Tensor,
    pools: Sequence[slice],
    state: Tensor,
    starts: Tensor,
    *,
    compiled: Compiled,
) -> tuple[ActingGraphs | None, str]:
    """Return how a policy acts as graphs in rollouts like this one, or None and why not."""
    if observations.device.type not in ("cpu", "cuda"):
        return None, "graphs act on the CPU and on CUDA devices only"
    rollout = observations, noise, pools, state, starts
    try:
        graphs = ActingGraphs(policy, distribution, *rollout, compiled=compiled)
    except Exception as error:  # as in `_on_every_rank`
        return None, one_line(error)
    return graphs, ""


@processes.ended_with_us()
def _on_every_rank(make: Callable[[], _Made], device: torch.device) -> tuple[_Made | None, str]:
    """Return what is made, or None and why not on every rank; ``make`` has no collective in it."""
    made, reason = None, ""
    try:
        made = make()
    except Exception as error:  # whatever the compiler or the user's policy raises
        reason = one_line(error)
    # One rank that fails takes the others with it: they have to stay in step.
    if all_max(float(bool(reason)), device) > 0:
        return None, reason or "it did on another rank"
    return made, ""
