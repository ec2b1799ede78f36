"""What a policy remembers of each environment: one tensor of any dtype, all zeros at first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError


def state_size(policy: Callable[..., Any]) -> int:
    """Return how many numbers a policy remembers of an environment, 0 for one without memory.

    That is its attribute ``state_size``, where its ``forward`` takes a state and starts.
    """
    size = getattr(policy, "state_size", 0)
    if not isinstance(size, Integral) or not takes(policy, 3):
        return 0
    return max(0, int(size))


def takes(policy: Callable[..., Any], count: int) -> bool:
    """Return whether a policy's ``forward`` takes so many arguments by their places."""
    try:
        inspect.signature(getattr(policy, "forward", policy)).bind(*[None] * count)
    except TypeError:
        return False
    return True


def initial_state(policy: Callable[..., Any], num_envs: int) -> Tensor:
    """Return the state ``[N, S]`` in which episodes begin, on the policy's device: zeros."""
    parameters = policy.parameters() if isinstance(policy, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), None)
    dtype = getattr(policy, "state_dtype", torch.float32)
    return torch.zeros(num_envs, state_size(policy), dtype=dtype, device=device)


def by_time(rows: Tensor, state: Tensor) -> Tensor:
    """Return rows ``[L * B, ...]``, as a policy is given them, as ``[L, B, ...]``.

    Args:
        state: ``[B, S]``. Where L is 1, as in an exported policy, nothing is divided by B: the file
            would hold for one B only.
    """
    count = state.shape[0]
    if rows.shape[0] == count:
        return rows[None]
    return rows.unflatten(0, (-1, count))


def check_layout(policy: Callable[..., Any], found: Any, given: Tensor) -> None:
    """Raise `ConfigurationError` where a state is not laid out as the one that was given."""
    if isinstance(found, Tensor) and (found.dtype, found.shape, found.device) == (
        given.dtype,
        given.shape,
        given.device,
    ):
        return

    def told(state: Any) -> str:
        if not isinstance(state, Tensor):
            return type(state).__name__
        return f"{state.dtype} {list(state.shape)} on {state.device}"

    raise ConfigurationError(
        f"the policy {type(policy).__name__} returns a state of {told(found)} for one of "
        f"{told(given)}, expected the same: one tensor [environments, state_size] of its "
        "state_dtype"
    )


def ask(
    policy: Callable[..., Any], observations: Tensor, state: Tensor | None, starts: Tensor | None
) -> Any:
    """Return what a policy says of L rows of each of B environments, see `ActorCritic`.

    Args:
        observations: ``[L * B, ...]``, in the order of time.
        state: ``[B, S]`` before the first, and starts ``[L * B]`` bool, where an episode begins;
            None: in every row. A policy without memory is not shown them.
    """
    if state is None:
        state = initial_state(policy, len(observations))
        starts = torch.ones(len(observations), dtype=torch.bool, device=observations.device)
    if not state.shape[-1]:
        return policy(observations, None)
    return policy(observations, state, starts)
