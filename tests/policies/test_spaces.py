"""Spaces become distributions, and plain containers and back."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.functional.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)
from ppo1_lightning.policies.spaces import describe, distribution_for, restore


@pytest.mark.parametrize(
    ("space", "distribution", "num_parameters"),
    [
        (spaces.Box(-1, 1, (6,)), DiagonalGaussian(6), 12),
        (spaces.Discrete(5), Categorical(5), 5),
        (spaces.MultiDiscrete([3, 4]), MultiCategorical((3, 4)), 7),
        (spaces.MultiBinary(3), Bernoulli(3), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_distribution(space: Space[Any], distribution: Distribution, num_parameters: int):
    assert distribution_for(space) == distribution
    assert distribution_for(space).num_parameters == num_parameters


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(-np.eye(2, dtype=np.float32), 1),  # prints as two lines
        spaces.Box(-1, 1, ()),
        spaces.Text(5),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict(a=spaces.Discrete(2)),
    ],
    ids=lambda space: type(space).__name__,
)
def test_other_spaces_are_refused_in_one_line(space: Space[Any]):
    with pytest.raises(ConfigurationError, match="not supported, expected Box") as error:
        distribution_for(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(
            [
                ("vector", spaces.Box(-np.inf, np.inf, (3,))),
                ("image", spaces.Box(0, 255, (8, 8, 3), np.uint8)),
            ]
        ),
        spaces.Box(0, 255, (84, 84, 4), np.uint8),
        spaces.Box(-np.inf, np.inf, (17,), np.float32),
        spaces.Discrete(np.int64(5)),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(3),
    ],
    ids=lambda space: type(space).__name__,
)
def test_description_is_plain_and_restores_the_space(space: Space[Any]):
    description = describe(space)
    assert json.loads(json.dumps(description)) == description
    file = io.BytesIO()
    torch.save(description, file)
    file.seek(0)
    assert restore(torch.load(file, weights_only=True)) == space


def test_bounds_of_a_box_are_not_part_of_its_description():
    bounded, unbounded = spaces.Box(-1, 1, (3,)), spaces.Box(-np.inf, np.inf, (3,))
    assert describe(bounded) == describe(unbounded)
    assert restore(describe(bounded)) == unbounded


@pytest.mark.parametrize("description", [{"type": "Text"}, {}, {"type": "Box", "shape": [3]}])
def test_unknown_descriptions_are_refused(description: dict[str, Any]):
    with pytest.raises(ConfigurationError, match="in the checkpoint is not supported"):
        restore(description)
