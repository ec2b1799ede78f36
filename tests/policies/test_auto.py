"""``policy=auto``: the policy that fits what is observed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

from ppo1_lightning import CnnPolicy, ConfigurationError, MlpPolicy
from ppo1_lightning.policies import auto_policy
from ppo1_lightning.policies.spaces import describe, example_rows, restore

ACTIONS = Discrete(3)
VECTOR = Box(-1, 1, (5,), np.float32)


def picture(*shape: int) -> Box:
    return Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (picture(4, 84, 84), "large"),
        (picture(64, 64, 3), "large"),
        (picture(36, 40, 3), "large"),
        (picture(3, 35, 40), "small"),
        (picture(20, 20, 1), "small"),
        (picture(19, 64, 3), "grid"),
        (picture(7, 7, 3), "grid"),
        (picture(1, 1, 1), "grid"),
        (Dict(vector=VECTOR, image=picture(7, 7, 3)), "grid"),
        (Dict(image=picture(4, 84, 84), image_2=picture(24, 24, 3)), "small"),
    ],
    ids=str,
)
def test_images_get_the_largest_network_that_fits(space: Any, size: str) -> None:
    policy = auto_policy(space, ACTIONS)
    assert isinstance(policy, CnnPolicy)
    assert policy.arguments["size"] == size
    dist_params, values, _ = policy(example_rows(space, 2))
    assert (dist_params.shape, values.shape) == ((2, 3), (2,))


MASKED = Dict(vector=VECTOR, action_mask=Box(0, 1, (3,), np.float32))


@pytest.mark.parametrize("space", [VECTOR, MASKED])
def test_vectors_get_the_normalised_mlp(space: Any) -> None:
    policy = auto_policy(space, ACTIONS, hidden_size=16, num_layers=None, memory="gru")
    assert isinstance(policy, MlpPolicy)
    assert policy.arguments["hidden_size"] == 16
    assert policy.arguments["memory"] == "gru"
    assert policy.observation_normalizer is not None


def test_what_is_of_vectors_only_is_refused_for_images() -> None:
    with pytest.raises(ConfigurationError, match=r"policy.hidden_size is of policies of vectors"):
        auto_policy(picture(7, 7, 3), ACTIONS, hidden_size=16)


def test_cells_are_seen_in_binary_digits_beside_a_normalised_vector() -> None:
    """What the trunk sees of a grid with every byte in it, against digits taken by numpy."""
    space = Dict(vector=VECTOR, image=picture(4, 3, 2), action_mask=Box(0, 1, (3,), np.float32))
    policy = CnnPolicy(space, ACTIONS, size="grid")
    rows = torch.rand(50, 5 + 24 + 3, generator=torch.Generator().manual_seed(0)) * 9
    cells = (np.arange(50 * 24) % 256).astype(np.uint8).reshape(50, 4, 3, 2)
    rows[:, 5:29] = torch.from_numpy(cells.reshape(50, 24))
    assert policy.observation_normalizer is not None
    policy.observation_normalizer.update(rows)
    (image,), vector = policy.preprocess(rows)
    std = rows.std(0, correction=0).clamp(min=0.1)
    expected = ((rows - rows.mean(0)) / std)[:, :5].clamp(-5, 5)
    assert vector is not None
    torch.testing.assert_close(vector, expected, atol=5e-3, rtol=0)
    digits = np.unpackbits(cells.transpose(0, 3, 1, 2)[:, :, None], axis=2, bitorder="little")
    np.testing.assert_array_equal(image.numpy(), digits.reshape(50, 16, 4, 3))


def test_of_several_images_only_the_small_ones_are_seen_in_digits() -> None:
    space = Dict(image=picture(24, 24, 3), image_2=picture(7, 7, 2))
    policy = auto_policy(space, ACTIONS)
    assert isinstance(policy, CnnPolicy)
    assert [(i.pixels[0], i.scale) for i in policy.images] == [(3, 1 / 255), (16, 1.0)]


@pytest.mark.parametrize("size", ["small", "large"])
def test_dark_images_are_seen_as_bright_ones(size: str) -> None:
    """By the largest number that they may have, also where a checkpoint is read."""
    shape, shown = (2, 40, 40), torch.randint(0, 6, (5, 2, 40, 40), dtype=torch.uint8)
    dark = restore(describe(Box(0, 5, shape, np.uint8)))
    policies = [CnnPolicy(space, ACTIONS, size=size) for space in (dark, picture(*shape))]
    policies[1].load_state_dict(policies[0].state_dict())
    ours, theirs = (p(o).values for p, o in zip(policies, (shown, shown * 51), strict=True))
    torch.testing.assert_close(ours, theirs)


def test_cells_of_other_numbers_are_seen_as_they_are() -> None:
    policy = CnnPolicy(Box(-1, 1, (2, 4, 3), np.float32), ACTIONS, size="grid")
    numbers = torch.rand(5, 2, 4, 3) * 2 - 1
    (image,), _ = policy.preprocess(numbers)
    torch.testing.assert_close(image, numbers, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((7, 7, 20), 20), ((20, 7, 7), 20), ((7, 7, 3), 3), ((3, 7, 8), 3), ((9, 8, 3), 3)],
)
def test_channels_are_what_is_no_side(shape: tuple[int, ...], channels: int) -> None:
    policy = CnnPolicy(picture(*shape), ACTIONS, size="grid")
    first = next(m for m in policy.trunk.modules() if isinstance(m, nn.Conv2d))
    assert first.weight.shape[1] == 8 * channels


def test_each_of_several_images_is_seen() -> None:
    """Networks of their own: the output depends on each, and on its own convolutions."""
    space = Dict(image=picture(3, 24, 24), image_2=picture(30, 26, 1))
    policy = CnnPolicy(space, ACTIONS)
    rows = (torch.rand(2, 3 * 24 * 24 + 30 * 26) * 255).requires_grad_()
    policy(rows).values.sum().backward()
    assert rows.grad is not None
    for part in (rows.grad[:, : 3 * 24 * 24], rows.grad[:, 3 * 24 * 24 :]):
        assert part.abs().sum() > 0
    weights = [m.weight for m in policy.trunk.modules() if isinstance(m, nn.Conv2d)]
    assert [w.shape[1] for w in weights] == [3, 16, 1, 16]
