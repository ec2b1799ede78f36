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

    That is its attribute ``state_size``, a whole number above 0, where its ``forward`` takes a
    state and starts.
    """
    size = getattr(policy, "state_size", 0)
    if not isinstance(size, Integral) or int(size) <= 0:
        return 0
    return int(size) if takes(policy, 3) else 0


def takes(policy: Callable[..., Any], count: int) -> bool:
    """Return whether a policy's ``forward`` takes so many arguments by their places.

    One that does not say what it takes is taken to.
    """
    try:
        signature = inspect.signature(getattr(policy, "forward", policy))
    except (TypeError, ValueError):  # of a function in C
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def initial_state(policy: Callable[..., Any], num_envs: int) -> Tensor:
    """Return the state ``[N, S]`` in which episodes begin, on the policy's device: zeros."""
    parameters = policy.parameters() if isinstance(policy, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), None)
    size = state_size(policy)
    dtype = getattr(policy, "state_dtype", torch.float32) if size else torch.float32
    return torch.zeros(num_envs, size, dtype=dtype, device=device)


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


def laid_out(policy: Callable[..., Any], found: Any, given: Tensor) -> Tensor:
    """Return a state that a policy returned, which is to be laid out as the one it was given.

    Of a lower precision it may be where autocast has made it so, and gets its own again.

    Raises:
        ConfigurationError: it is no tensor, or of another dtype, shape or device.
    """
    floats = isinstance(found, Tensor) and found.is_floating_point() and given.is_floating_point()
    if floats and torch.is_autocast_enabled(given.device.type):
        found = found.to(given.dtype)
    layout = (given.dtype, given.shape, given.device)  # no words in a step where all is well
    if not isinstance(found, Tensor) or (found.dtype, found.shape, found.device) != layout:
        raise ConfigurationError(
            f"the policy {type(policy).__name__} returns a state of {_told(found)} for one of "
            f"{_told(given)}, expected the same: one tensor [environments, state_size] of its "
            "state_dtype"
        )
    return found


def _told(state: Any) -> str:
    if not isinstance(state, Tensor):
        return type(state).__name__
    return f"{state.dtype} {list(state.shape)} on {state.device}"


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
