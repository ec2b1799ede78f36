"""Memory of a policy: equal to PyTorch's layers, episode by episode, and to acting step by step."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppo1_lightning import CnnPolicy, MlpPolicy
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.policies.base import evaluate
from ppo1_lightning.policies.memory import CELLS, Memory, MemoryOptions
from ppo1_lightning.policies.state import ask, initial_state

KINDS = tuple(CELLS)


def rows_of(length: int, units: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features ``[L * U, size]`` and starts ``[L * U]``, float64."""
    stream = torch.Generator().manual_seed(seed)
    features = torch.randn(length * units, size, generator=stream, dtype=torch.float64)
    return features, torch.rand(length * units, generator=stream) < 0.2


def by_episodes(memory: Memory, features: Tensor, starts: Tensor, state: Tensor) -> Tensor:
    """Return outputs ``[L * U, H]``: each episode alone through a copy of PyTorch's layers."""
    units = len(state)
    stacked = nn.ModuleList(memory.layers)
    outputs = torch.empty(len(features), memory.hidden_size, dtype=features.dtype)
    for u in range(units):
        rows = torch.arange(u, len(features), units)
        cuts = [0, *(i for i, row in enumerate(rows) if i and starts[row]), len(rows)]
        for first, end in pairwise(cuts):
            its_rows, x = rows[first:end], features[rows[first:end]]
            goes_on = first == 0 and not starts[rows[0]]
            for layer, own in zip(stacked, state[u].split(memory.layer_state_size), strict=True):
                before = own if goes_on else torch.zeros_like(own)
                parts: Any = tuple(part[None] for part in before.chunk(CELLS[memory.kind].parts))
                x, _ = layer(x, parts if len(parts) > 1 else parts[0])
            outputs[its_rows] = x
    return outputs


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_each_episode_alone(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    memory = Memory(kind, 3, 5, layers).double()
    for parameter in memory.parameters():
        parameter.data = 0.5 * torch.randn_like(parameter)
    features, starts = rows_of(17, 4, 3)
    state = torch.randn(4, memory.state_size, dtype=torch.float64)
    weights = torch.randn(17 * 4, 5, dtype=torch.float64)
    given = features.requires_grad_(), state.requires_grad_(), *memory.parameters()
    ours, _ = memory(features, state, starts)
    theirs = by_episodes(memory, features, starts, state)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(
        *(torch.autograd.grad((o * weights).sum(), given) for o in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(mine, expected)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    length=st.integers(1, 9),
    units=st.integers(1, 4),
    data=st.data(),
)
def test_any_episodes(kind: str, length: int, units: int, data: Any) -> None:
    """Starts at a unit's border, in every row, or nowhere: an episode longer than the unit."""
    memory = Memory(kind, 2, 3, 1).double()
    features, _ = rows_of(length, units, 2, seed=length)
    count = length * units
    starts = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    state = torch.ones(units, memory.state_size, dtype=torch.float64)
    outputs, after = memory(features, state, starts)
    torch.testing.assert_close(outputs, by_episodes(memory, features, starts, state))
    rest = memory(features[:units], after, torch.zeros(units, dtype=torch.bool))[0]
    longer = memory(
        torch.cat([features, features[:units]]), state, torch.cat([starts, starts[:units] & False])
    )[0]
    torch.testing.assert_close(rest, longer[-units:])


VECTOR = Box(-1, 1, (6,))
MASKED = Dict(action_mask=Box(0, 1, (3,)), vector=Box(-1, 1, (4,)))
IMAGE = Box(0, 255, (2, 36, 36), np.uint8)

POLICIES: dict[str, tuple[Any, Any, Any]] = {
    "gru": (partial(MlpPolicy, memory="gru"), VECTOR, Box(-1, 1, (2,))),
    "lstm": (partial(MlpPolicy, memory="lstm"), VECTOR, Discrete(3)),
    "two_layers": (partial(MlpPolicy, memory="lstm", memory_layers=2), VECTOR, MultiBinary(2)),
    "shared": (partial(MlpPolicy, memory="gru", shared_trunk=True), VECTOR, MultiDiscrete([2, 3])),
    "masked": (partial(MlpPolicy, memory="lstm"), MASKED, Discrete(3)),
    "cnn": (partial(CnnPolicy, size="tiny", memory="gru"), IMAGE, Discrete(3)),
}


def made(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    factory, observation_space, action_space = POLICIES[name]
    policy = factory(observation_space, action_space, memory_size=7)
    for where, parameter in policy.named_parameters():  # the heads start close to 0
        if "convolutions" not in where:  # sums of hundreds, and a float32's error of 1e-5 with them
            parameter.data += 0.3 * torch.randn_like(parameter)
    return policy, observation_space


def observations_of(space: Any, count: int) -> Tensor:
    stream = torch.Generator().manual_seed(1)
    if space is IMAGE:
        return torch.randint(0, 255, (count, *space.shape), generator=stream, dtype=torch.uint8)
    rows = torch.randn(count, 7 if space is MASKED else 6, generator=stream)
    if space is MASKED:
        rows[:, :3] = (rows[:, :3] > 0).float()
        rows[:, 0] = 1
    return rows


@torch.no_grad()
@pytest.mark.parametrize("name", POLICIES)
def test_step_by_step_is_as_in_units(name: str) -> None:
    policy, space = made(name)
    length, units = 12, 5
    observations = observations_of(space, length * units)
    starts = torch.rand(length * units, generator=torch.Generator().manual_seed(2)) < 0.2
    first = torch.randn(initial_state(policy, units).shape)
    whole = ask(policy, observations, first, starts)
    state, steps = first, []
    by_row = observations.view(length, units, *observations.shape[1:]), starts.view(length, -1)
    for row, begins in zip(*by_row, strict=True):
        dist_params, values, state = ask(policy, row, state, begins)
        steps.append((dist_params, values))
    for ours, theirs in zip(whole, [*map(torch.cat, zip(*steps, strict=True)), state], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    parts = evaluate(policy, observations, first, starts)
    for ours, theirs in zip(parts, whole, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", POLICIES)
def test_environments_know_nothing_of_each_other(name: str) -> None:
    policy, space = made(name)
    observations = observations_of(space, 6 * 3)
    starts = torch.zeros(18, dtype=torch.bool)
    changed = observations.clone()
    changed[1::3] = observations[0]
    state = torch.randn(initial_state(policy, 3).shape)
    before, after = (
        ask(policy, rows, state, starts)[0].view(6, 3, -1) for rows in (observations, changed)
    )
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_a_policy_without_memory_is_shown_none() -> None:
    seen: list[tuple[Any, ...]] = []

    def policy(*arguments: Any) -> tuple[Any, Any, Any]:
        seen.append(arguments)
        return 1, 2, 3

    rows = torch.zeros(4, 2)
    assert ask(policy, rows, None, None) == (1, 2, 3)
    ask(policy, rows, torch.zeros(4, 0), torch.zeros(4, dtype=torch.bool))
    assert seen == [(rows, None)] * 2


def test_without_memory_nothing_else_is_made() -> None:
    policy = MlpPolicy(VECTOR, Discrete(2))
    assert policy.state_size == 0
    assert "memory" not in policy.arguments
    assert not any("memory" in name for name in policy.state_dict())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memory": "rnn"}, "policy.memory='rnn'"),
        ({"memory": "gru", "memory_size": 0}, "policy.memory_size=0"),
        ({"memory": "lstm", "memory_layers": 1.5}, "policy.memory_layers=1.5"),
    ],
)
def test_bad_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        MemoryOptions(**options)
