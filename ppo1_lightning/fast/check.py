"""What no graph can do, and whether one computes what it was traced from: before it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.fast.graphs import ModuleCall
from ppo1_lightning.fast.steps import step_of

COMPARED_AGAIN_AFTER = 10_000
"""Optimizer steps after which a graph's gradient is compared with the eager one once more: some
hundred iterations of the presets. Both times together cost less than ten steps do."""

CHANGED = "{} has changed since it was traced; as a buffer (register_buffer) a graph sees it change"


def unsupported(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why no graph takes this optimizer's steps, None where one can."""
    if step_of(optimizer) is None:
        kinds = "Adam and TensorFlowRMSprop"
        return f"supports {kinds} only, not {type(optimizer).__name__}"
    if len(optimizer.param_groups) != 1:
        return "supports one parameter group only"
    group = optimizer.param_groups[0]
    if any(group.get(name) for name in ("weight_decay", "amsgrad", "maximize")):
        return "supports Adam without weight_decay, amsgrad and maximize only"
    if any(p.dtype != torch.float32 or not p.requires_grad for p in group["params"]):
        return "supports float32 parameters only, none of them frozen"
    return None


def traced_settings(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return what of an optimizer graphs have in them, and so would not see change."""
    step, groups = step_of(optimizer), optimizer.param_groups
    names = () if step is None else step.settings
    return [(list(map(id, g["params"])), *(g.get(name) for name in names)) for g in groups]


@contextmanager
def buffers_unchanged(call: ModuleCall) -> Iterator[None]:
    """Refuse a module that changes its buffers when it is called: a graph would not.

    Raises:
        ConfigurationError: it did; they are as they were before.
    """
    before = [tensor.clone() for tensor in call.others()]
    changed = False
    try:
        yield
    finally:
        for tensor, as_it_was in zip(call.others(), before, strict=True):
            if not torch.equal(tensor, as_it_was):
                changed = True
                tensor.copy_(as_it_was)
    if changed:
        raise ConfigurationError(
            "the policy changes its buffers when it is called, expected a pure function of its "
            "arguments, parameters and buffers"
        )


def refuse_replaced(
    parameters: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    flats: Sequence[Tensor],
    moment: str,
    pieces: Sequence[Tensor],
) -> None:
    """Refuse parameters and moments that do not lie in these pieces of flat vectors any more.

    Raises:
        RuntimeError: one does not, or is frozen.
    """
    for parameter, flat, piece in zip(parameters, flats, pieces, strict=True):
        its_moment = optimizer.state[parameter].get(moment, flat)
        is_flat = parameter.data_ptr() == flat.data_ptr()
        if not (is_flat and its_moment.data_ptr() == piece.data_ptr() and parameter.requires_grad):
            raise RuntimeError(
                "the policy's parameters or the optimizer's state were replaced or frozen in "
                "the middle of training, expected them changed in place; use compile=false"
            )


def compare_gradients(
    names: Sequence[str], gradients: Sequence[Tensor], eager: Sequence[Tensor]
) -> None:
    """Compare each parameter's gradient with the eager one, relative to its own norm.

    Raises:
        ConfigurationError: one differs, as for a policy that draws random numbers; the one that
            does most is named.
    """
    # Half precision rounds where operators end, and a compiled graph has fewer of them.
    tolerance = 0.1 if torch.is_autocast_enabled(eager[0].device.type) else 1e-3
    scales = torch.stack([expected.norm() for expected in eager])
    errors = torch.stack([(g - e).norm() for g, e in zip(gradients, eager, strict=True)])
    floor = 1e-6 * scales.norm() + 1e-7  # for sums that cancel out
    excess = (errors / (tolerance * scales + floor)).nan_to_num(torch.inf)
    worst = int(excess.argmax())
    if excess[worst] > 1:
        raise ConfigurationError(
            f"the gradient of {names[worst].removeprefix('module.')} differs from the eager one by "
            f"{errors[worst]:.2g}, its norm is {scales[worst]:.2g}, at most {tolerance:g} of it is "
            "rounding; expected a pure function of its arguments, parameters and buffers"
        )


def compare_surfaces(
    graphs: Any, eager: Any, parameters: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Compare gradient, a product and gain and KL of two surfaces.

    Raises:
        ConfigurationError: see `compare_gradients`.
    """
    sizes = [parameter.numel() for parameter in parameters]
    gradient, expected = (surface.gain_and_gradient()[1] for surface in (graphs, eager))
    vector = torch.linspace(-1, 1, sum(sizes), device=gradient.device)
    pairs = ((gradient, expected), (graphs.hessian()(vector), eager.hessian()(vector)))
    for ours, theirs in pairs:
        compare_gradients(names, ours.split(sizes), theirs.split(sizes))
    # Both are near 0 at the old policy.
    tolerance = 1e-2 if torch.is_autocast_enabled(gradient.device.type) else 1e-4
    values = graphs.gain_and_kl(), eager.gain_and_kl()
    if not torch.allclose(*values, rtol=tolerance, atol=tolerance):
        raise ConfigurationError(
            f"gain and KL are {values[0].tolist()} and not {values[1].tolist()} as without graphs; "
            "expected a pure function of its arguments, parameters and buffers"
        )


def seconds_of(take: Callable[[], None], device: torch.device) -> float:
    """Return how long something takes, until a GPU has done it too: the shortest of a few."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(3):
        wait()
        started = time.perf_counter()
        with torch.inference_mode():
            take()
        wait()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
