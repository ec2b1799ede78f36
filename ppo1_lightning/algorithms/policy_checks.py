"""Policies that no algorithm can learn from: refused before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Integral
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.spaces import example_rows
from ppo1_lightning.policies.state import ask, initial_state, laid_out, state_size, takes
from ppo1_lightning.rollouts.seeding import apart

log = logging.getLogger("ppo1_lightning")


def check(policy: nn.Module, observation_space: Space[Any], distribution: Distribution) -> None:
    """Refuse a policy by what it says of two rows, or of some rows of two environments.

    Raises:
        ConfigurationError: it names the output, and what is expected of it.
    """
    if not isinstance(policy, nn.Module):
        kind = type(policy).__name__
        raise ConfigurationError(f"policy made a {kind}, expected a torch.nn.Module")
    _check_arguments(policy)
    asked = partial(_outputs, policy.eval(), distribution)
    with apart(), torch.inference_mode(False), torch.enable_grad():
        if not state_size(policy):
            asked(example_rows(observation_space, 2), None, None)
            return
        state, nowhere = initial_state(policy, 2), torch.zeros(4, dtype=torch.bool)
        after = asked(_random_rows(observation_space, 4), state, nowhere)[2].detach()
        if after.is_floating_point() and not after.isfinite().all():
            raise ConfigurationError(
                f"the policy {type(policy).__name__} returns a state that is not finite, expected "
                "finite numbers"
            )
        _check_memory(type(policy).__name__, asked, _random_rows(observation_space, 6), after)


def _check_arguments(policy: nn.Module) -> None:
    """Refuse a policy that cannot be called, or whose memory has no size."""
    name, size = type(policy).__name__, getattr(policy, "state_size", 0)
    has_memory, needs_starts = bool(state_size(policy)), not takes(policy, 2)
    if needs_starts and not takes(policy, 3):
        raise ConfigurationError(
            f"the policy {name} cannot be called as forward(observations, state), or with memory "
            "as forward(observations, state, starts), expected one of these"
        )
    if needs_starts and not has_memory:
        raise ConfigurationError(
            f"the policy {name} takes starts and has state_size={size!r}, expected how many "
            "numbers it remembers of an environment, a whole number above 0"
        )
    if not has_memory and not (size is None or (isinstance(size, Integral) and int(size) == 0)):
        why = "no whole number above 0" if takes(policy, 3) else "and its forward takes no starts"
        log.warning("the policy %s has state_size=%s, %s: it has no memory", name, size, why)
    dtype = getattr(policy, "state_dtype", None)
    if has_memory and not (dtype is None or isinstance(dtype, torch.dtype)):
        raise ConfigurationError(
            f"the policy {name} has state_dtype={dtype!r}, expected one such as torch.float32"
        )


def _outputs(
    policy: nn.Module,
    distribution: Distribution,
    rows: Tensor,
    state: Tensor | None,
    starts: Tensor | None,
) -> Any:
    """Return what a policy says of rows, and refuse it by how that is laid out."""
    before = None if state is None else state.clone()
    outputs = ask(policy, rows, state, starts)
    _check_outputs(policy, outputs, len(rows), distribution)
    if state is not None and before is not None:
        laid_out(policy, outputs[2], state)
        if not _same(state, before):
            raise ConfigurationError(_CHANGES.format(type(policy).__name__))
    return outputs


def _check_outputs(policy: nn.Module, outputs: Any, rows: int, distribution: Distribution) -> None:
    name = type(policy).__name__
    if not isinstance(outputs, tuple) or len(outputs) != 3:
        count = len(outputs) if isinstance(outputs, tuple | list) else 1
        raise ConfigurationError(
            f"the policy {name} returns {count} output{'s' * (count != 1)}, expected three: "
            "(distribution parameters, values, state)"
        )
    wanted = {
        "distribution parameters": (rows, distribution.num_parameters),
        "values": (rows,),
    }
    for (what, shape), tensor in zip(wanted.items(), outputs, strict=False):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ConfigurationError(
                f"the policy {name} returns {what} of {kind}, expected a tensor of floats"
            )
        if tensor.shape != shape:
            raise ConfigurationError(
                f"the policy {name} returns {what} of the shape {list(tensor.shape)} for {rows} "
                f"observations, expected {list(shape)}"
            )
        if not tensor.requires_grad and any(p.requires_grad for p in policy.parameters()):
            raise ConfigurationError(
                f"the policy {name} returns {what} without a gradient, expected them to depend on "
                "its parameters"
            )


def _check_memory(name: str, asked: Callable[..., Any], rows: Tensor, state: Tensor) -> None:
    """Refuse a policy that says something else of rows at once than of them one by one.

    Args:
        name: of the policy.
        asked: returns what it says of rows, a state and starts.
        rows: three of each of two environments, in the order of time.
        state: ``[2, S]``, one that it came to.
    """
    nowhere = torch.zeros(6, dtype=torch.bool)
    somewhere = torch.tensor([True, False, False, True, True, False])
    alone = _one_by_one(asked, rows[:2], state, nowhere[:2])
    if not _alike(asked(rows[:2], state, nowhere[:2]), alone):
        raise ConfigurationError(
            f"the policy {name} says something else of an environment beside another one than "
            "alone, expected that the environments of a batch know nothing of each other"
        )
    if not _alike(asked(rows, state, nowhere), _one_by_one(asked, rows, state, nowhere)):
        raise ConfigurationError(
            f"the policy {name} says something else of several rows of two environments at once "
            "than of one row after the other; expected rows [L * B, ...] in the order of time: the "
            "first ones of all environments, then the second ones"
        )
    for count in (2, 6):
        its_rows, starts = rows[:count], somewhere[:count]
        expected = _one_by_one(asked, its_rows, state, starts)
        if not _alike(asked(its_rows, state, starts), expected):
            raise ConfigurationError(
                f"the policy {name} returns something else where `starts` says that an episode "
                "begins than after a state of zeros; expected that it forgets its state there: "
                "state = state.masked_fill(starts.unsqueeze(-1), 0)"
            )
    returned = asked(rows[:2], state, nowhere[:2])[2]
    kept = returned.clone()
    asked(rows[2:4], returned, nowhere[:2])
    if not _same(returned, kept):
        raise ConfigurationError(_CHANGES.format(name))


_CHANGES = (
    "the policy {} changes a state that it was given or has returned, expected that it returns "
    "another one"
)


def _one_by_one(
    asked: Callable[..., Any], rows: Tensor, state: Tensor, starts: Tensor
) -> list[Tensor]:
    """Return the outputs of L rows of B environments, each asked for alone, zeros at a start."""
    count, no = len(state), torch.tensor([False])
    now, said = list(state.split(1)), []
    for i, row in enumerate(rows.split(1)):
        before = torch.zeros_like(now[0]) if starts[i] else now[i % count]
        *outputs, after = asked(row, before, no)
        now[i % count] = after.clone()
        said.append(outputs)
    return [*map(torch.cat, zip(*said, strict=True)), torch.cat(now)]


def _random_rows(observation_space: Space[Any], count: int) -> Tensor:
    rows = example_rows(observation_space, count)
    return rows.random_() if rows.dtype == torch.uint8 else rows.normal_()


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)


def _alike(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    """Return whether outputs are equal but for rounding."""
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )
