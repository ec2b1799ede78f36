"""The benchmarks' own parts run; what they measure is no matter of tests."""

from __future__ import annotations

from benchmarks.bare import Bare


def test_bare_loop_learns_and_measures() -> None:
    result = Bare("cartpole", ["compile=trace"]).run(0.01, learn=True)
    assert result["steps_per_second"] > 0
    assert result["iterations"] >= 1
