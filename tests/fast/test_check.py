"""What is said where a graph's gradient is not the eager one."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from ppo1_lightning import ConfigurationError
from ppo1_lightning.fast.check import compare_gradients

NAMES = ["module.first.weight", "module.first.bias", "module.last.weight"]


def gradients() -> list[Tensor]:
    return [torch.full((50, 20), 0.1), torch.full((4,), 1e-3), torch.ones(3)]


def test_rounding_passes() -> None:
    eager = gradients()
    compare_gradients(NAMES, [gradient * (1 + 1e-5) for gradient in eager], eager)


def test_the_parameter_that_differs_most_is_named_with_the_amount() -> None:
    """Also a small one, whose error is nothing beside the whole gradient."""
    eager, ours = gradients(), gradients()
    ours[0] *= 1.002
    ours[1] *= 1.13
    said = "the gradient of first.bias differs from the eager one by 0.00026, its norm is 0.002,"
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        compare_gradients(NAMES, ours, eager)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_differs(value: float) -> None:
    eager, ours = gradients(), gradients()
    ours[2][1] = value
    with pytest.raises(ConfigurationError, match=re.escape("of last.weight differs")):
        compare_gradients(NAMES, ours, eager)


def test_a_gradient_that_cancels_out_is_not_compared_with_itself() -> None:
    eager, ours = gradients(), gradients()
    eager[1], ours[1] = torch.zeros(4), torch.full((4,), 1e-7)
    compare_gradients(NAMES, ours, eager)
