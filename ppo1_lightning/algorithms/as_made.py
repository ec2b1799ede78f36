"""Whether a built-in policy is still what its arguments make: it may have been changed since."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.policies.spaces import example_rows
from ppo1_lightning.policies.state import ask
from ppo1_lightning.rollouts.seeding import apart

_FOUND: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()
"""For each policy its structure and what was found: a large one takes most of a save to make."""

_WEIGHTS = {"_parameters", "_buffers", "_modules", "training"}


def is_as_made(policy: nn.Module, spaces: tuple[Space[Any], Space[Any]]) -> bool:
    """Tell it by a policy made anew, where its parts or their settings are not as last time."""
    structure = [(name, type(part), _settings(part)) for name, part in policy.named_modules()]
    if policy not in _FOUND or _FOUND[policy][0] != structure:
        _FOUND[policy] = structure, _does_the_same(policy, spaces)
    return _FOUND[policy][1]


def _settings(part: nn.Module) -> dict[str, Any]:
    return {name: _picture(v) for name, v in vars(part).items() if name not in _WEIGHTS}


def _picture(value: Any) -> Any:
    """Return what stands for a setting; numbers of tensors are weights or statistics."""
    match value:
        case bool() | int() | float() | str() | None:
            return value
        case dict():
            return [(_picture(key), _picture(item)) for key, item in value.items()]
        case list() | tuple():
            return [_picture(item) for item in value]
    return type(value), None if isinstance(value, Tensor) else id(value)


@torch.no_grad()
def _does_the_same(policy: nn.Module, spaces: tuple[Space[Any], Space[Any]]) -> bool:
    """Compare what both say of some random rows."""
    with apart():
        again = type(policy)(*spaces, **policy.arguments).eval()  # type: ignore[operator]
        rows = example_rows(spaces[0], 8)
        rows = rows.random_() if rows.dtype == torch.uint8 else rows.normal_()
    weights, same_weights = policy.state_dict(), again.state_dict()
    if str(again) != str(policy) or weights.keys() != same_weights.keys():
        return False
    again.load_state_dict(weights)
    device = next(policy.parameters()).device
    ours, made = (ask(p, rows.to(device), None, None)[:2] for p in (policy, again.to(device)))
    return all(map(torch.equal, ours, made))
