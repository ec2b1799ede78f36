"""The benchmarks' own parts run; what they measure is no matter of tests."""

from __future__ import annotations

import pytest

from benchmarks.bare import Bare
from benchmarks.cases import CASES
from benchmarks.measure import Measurement
from benchmarks.run import cases_named, systems_of

pytestmark = pytest.mark.heavy


def test_bare_loop_learns_and_measures() -> None:
    result = Bare("cartpole", ["compile=trace"]).run(0.01, learn=True)
    assert result["steps_per_second"] > 0
    assert result["iterations"] >= 1


def test_beginning_of_a_name_stands_for_all_its_cases() -> None:
    assert cases_named(["trpo"]) == [case for case in CASES if case.startswith("trpo_")]
    assert cases_named(["cartpole"]) == ["cartpole"]
    assert cases_named(["trpo_halfcheetah"]) == ["trpo_halfcheetah"]
    assert cases_named([]) == list(CASES)
    with pytest.raises(ValueError, match="unknown case breakout, expected some of halfcheetah"):
        cases_named(["atari", "breakout"])


def test_a_measurement_ends_after_its_steps() -> None:
    measurement = Measurement(0.0, warmup=1, steps=30)
    assert [measurement.tick(steps) for steps in (10, 20, 30)] == [False, False, True]
    assert measurement.result()["iterations"] == 2


def test_a_case_runs_on_the_systems_that_have_its_algorithm() -> None:
    assert systems_of("trpo_cartpole", ["ours", "cleanrl", "sb3"]) == ["ours", "sb3"]
    assert systems_of("cartpole", ["ours", "cleanrl", "sb3"]) == ["ours", "cleanrl", "sb3"]
