"""Policies that no algorithm can learn from: refused before the first step."""

from __future__ import annotations

import logging
from numbers import Integral
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.spaces import example_rows
from ppo1_lightning.policies.state import ask, check_layout, initial_state, state_size, takes
from ppo1_lightning.rollouts.seeding import apart

log = logging.getLogger("ppo1_lightning")


def check(policy: nn.Module, observation_space: Space[Any], distribution: Distribution) -> None:
    """Refuse a policy by what it says of two rows, or of two rows of two environments.

    Raises:
        ConfigurationError: it names the output, and what is expected of it.
    """
    name = type(policy).__name__
    if not isinstance(policy, nn.Module):
        raise ConfigurationError(f"policy made a {name}, expected a torch.nn.Module")
    _check_arguments(policy)
    count = 4 if state_size(policy) else 2
    rows, state = example_rows(observation_space, count), initial_state(policy, 2)
    starts = torch.zeros(count, dtype=torch.bool)
    with apart(), torch.inference_mode(False), torch.enable_grad():
        outputs = ask(policy.eval(), rows, state, starts)
        _check_outputs(policy, outputs, count, distribution)
        if state_size(policy):
            check_layout(policy, outputs[2], state)
            _check_finite(name, outputs[2])
            _check_order(policy, observation_space)
            _check_forgets(policy, observation_space)


def _check_arguments(policy: nn.Module) -> None:
    """Refuse a policy that cannot be called, or whose memory has no size."""
    name, size = type(policy).__name__, getattr(policy, "state_size", 0)
    if not takes(policy, 2) and not takes(policy, 3):
        raise ConfigurationError(
            f"the policy {name} cannot be called as forward(observations, state), or with memory "
            "as forward(observations, state, starts), expected one of these"
        )
    if not takes(policy, 3):
        if size:
            log.warning(
                "the policy %s has state_size=%s, and no memory, for its forward takes no starts",
                name,
                size,
            )
        return
    if not isinstance(size, Integral) or size < 0:  # type: ignore[operator]
        raise ConfigurationError(
            f"the policy {name} has state_size={size!r}, expected a whole number, 0 without memory"
        )
    dtype = getattr(policy, "state_dtype", torch.float32)
    if not isinstance(dtype, torch.dtype):
        raise ConfigurationError(
            f"the policy {name} has state_dtype={dtype!r}, expected one such as torch.float32"
        )


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


def _check_finite(name: str, state: Tensor) -> None:
    if state.is_floating_point() and not state.isfinite().all():
        raise ConfigurationError(
            f"the policy {name} returns a state that is not finite, expected finite numbers"
        )


def _check_order(policy: nn.Module, observation_space: Space[Any]) -> None:
    """Refuse a policy that says something else of rows at once than one by one."""
    name = type(policy).__name__
    rows, state = _random_rows(observation_space, 4), initial_state(policy, 2)
    nowhere = torch.zeros(4, dtype=torch.bool)
    before, at_once = state.clone(), policy(rows, state, nowhere)
    first = policy(rows[:2], state, nowhere[:2])
    between = first[2].clone()
    second = policy(rows[2:], first[2], nowhere[2:])
    if not (_same(state, before) and _same(first[2], between)):
        raise ConfigurationError(
            f"the policy {name} changes a state that it was given or has returned, expected that "
            "it returns another one"
        )
    in_turn = [torch.cat([a, b]) for a, b in zip(first[:2], second[:2], strict=True)]
    if not all(map(_alike, at_once, [*in_turn, second[2]])):
        raise ConfigurationError(
            f"the policy {name} says something else of two rows of two environments at once than "
            "of one row after the other; expected rows [L * B, ...] in the order of time: the "
            "first ones of all environments, then the second ones"
        )
    apart = [policy(rows[i : i + 1], state[i : i + 1], nowhere[:1]) for i in range(2)]
    if not all(map(_alike, first, map(torch.cat, zip(*apart, strict=True)))):
        raise ConfigurationError(
            f"the policy {name} says something else of an environment beside another one than "
            "alone, expected that the environments of a batch know nothing of each other"
        )


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether tensors are equal but for rounding."""
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True)


def _random_rows(observation_space: Space[Any], count: int) -> Tensor:
    rows = example_rows(observation_space, count)
    return rows.random_() if rows.dtype == torch.uint8 else rows.normal_()


def _check_forgets(policy: nn.Module, observation_space: Space[Any]) -> None:
    """Refuse a policy to which it matters what was before an episode's start."""
    rows, other = _random_rows(observation_space, 2), example_rows(observation_space, 1)
    zeros, yes, no = initial_state(policy, 1), torch.tensor([True]), torch.tensor([False])
    ones = torch.ones_like(zeros)
    pasts = [
        (rows[1:], ones, yes),
        (rows, zeros, torch.cat([no, yes])),
        (torch.cat([other, rows[1:]]), ones, torch.cat([no, yes])),
    ]
    fresh = policy(rows[1:], zeros, no)
    for past in pasts:
        last = [output[-1:] for output in policy(*past)]
        if not all(map(_alike, last, fresh)):
            raise ConfigurationError(
                f"the policy {type(policy).__name__} returns something else where `starts` says "
                "that an episode begins than after a state of zeros; expected that it forgets its "
                "state there: state = state.masked_fill(starts.unsqueeze(-1), 0)"
            )
