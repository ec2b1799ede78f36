"""Policies that no algorithm can learn from: refused before the first step."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.base import ask, initial_state, state_size
from ppo1_lightning.policies.spaces import example_rows
from ppo1_lightning.rollouts.seeding import apart


def check(policy: nn.Module, observation_space: Space[Any], distribution: Distribution) -> None:
    """Refuse a policy by what it says of two rows, or of two rows of two environments.

    Raises:
        ConfigurationError: it names the output, and what is expected of it.
    """
    name = type(policy).__name__
    if not isinstance(policy, nn.Module):
        raise ConfigurationError(f"policy made a {name}, expected a torch.nn.Module")
    count = 4 if state_size(policy) else 2
    rows, state = example_rows(observation_space, count), initial_state(policy, 2)
    starts = torch.zeros(count, dtype=torch.bool)
    with apart(), torch.inference_mode(False), torch.enable_grad():
        outputs = ask(policy.eval(), rows, state, starts)
        _check_outputs(policy, outputs, count, distribution)
        if state_size(policy):
            _check_state(name, outputs[2], state)
            _check_order(policy, observation_space)
            _check_forgets(policy, observation_space)


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


def _check_state(name: str, found: Any, given: Tensor) -> None:
    """Refuse a state that is not laid out as the one that was given."""

    def told(state: Any) -> str:
        if not isinstance(state, Tensor):
            return type(state).__name__
        return f"{state.dtype} {list(state.shape)} on {state.device}"

    if told(found) != told(given):
        raise ConfigurationError(
            f"the policy {name} returns a state of {told(found)} for one of {told(given)}, "
            "expected the same: one tensor [environments, state_size] of its state_dtype"
        )
    if found.is_floating_point() and not found.isfinite().all():
        raise ConfigurationError(
            f"the policy {name} returns a state that is not finite, expected finite numbers"
        )


def _check_order(policy: nn.Module, observation_space: Space[Any]) -> None:
    """Refuse a policy that says something else of two rows at once than of one after the other."""
    rows, state = _random_rows(observation_space, 4), initial_state(policy, 2)
    nowhere = torch.zeros(4, dtype=torch.bool)
    before, at_once = state.clone(), policy(rows, state, nowhere)
    if not torch.equal(state, before):
        raise ConfigurationError(
            f"the policy {type(policy).__name__} changes the state that it is given, expected that "
            "it returns another one"
        )
    first = policy(rows[:2], state, nowhere[:2])
    second = policy(rows[2:], first[2], nowhere[2:])
    in_turn = [torch.cat([a, b]) for a, b in zip(first[:2], second[:2], strict=True)]
    pairs = zip(at_once, [*in_turn, second[2]], strict=True)
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs):
        raise ConfigurationError(
            f"the policy {type(policy).__name__} says something else of two rows of two "
            "environments at once than of one row after the other; expected rows [L * B, ...] in "
            "the order of time: the first ones of all environments, then the second ones"
        )


def _random_rows(observation_space: Space[Any], count: int) -> Tensor:
    rows = example_rows(observation_space, count)
    return rows.random_() if rows.dtype == torch.uint8 else rows.normal_()


def _check_forgets(policy: nn.Module, observation_space: Space[Any]) -> None:
    """Refuse a policy to which it matters what was before an episode's start."""
    rows = _random_rows(observation_space, 2)
    others = torch.cat([example_rows(observation_space, 1), rows[1:]])
    zeros = initial_state(policy, 1)
    begins, later = torch.tensor([True, True]), torch.tensor([False, True])
    past, another = (rows, zeros, begins), (others, torch.ones_like(zeros), later)
    outputs = ([output[-1] for output in policy(*given)] for given in (past, another))
    if not all(torch.allclose(a, b, equal_nan=True) for a, b in zip(*outputs, strict=True)):
        raise ConfigurationError(
            f"the policy {type(policy).__name__} returns something else after another past, where "
            "`starts` says that an episode begins; expected that it forgets its state there: "
            "state = state.masked_fill(starts.unsqueeze(-1), 0)"
        )
