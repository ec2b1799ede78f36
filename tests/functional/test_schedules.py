"""The multiplier goes from 1 to 0 with the budget, and not below."""

import pytest

from ppo1_lightning.functional.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("name", "expected"), [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0, 0])]
)
def test_multiplier(name: str, expected: list[float]):
    assert [SCHEDULES[name](spent) for spent in (0.0, 0.25, 1.0, 1.5)] == expected
