"""What is quoted of errors that are not ours."""

from __future__ import annotations

import pytest

from ppo1_lightning.errors import LONGEST_QUOTE, one_line, whole_in_one_line


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


LONG = "x" * LONGEST_QUOTE
QUOTES = [
    (ValueError("one"), "one", "one"),
    (ValueError("\n  one:\n\n    two\n"), "one:", "one: two"),
    (ValueError(""), "ValueError('')", "ValueError('')"),
    (ValueError(f"one\n{LONG}"), "one", f"one {LONG[:-4]}..."),
    (MuteError(), "which does not say what it is", "which does not say what it is"),
]


@pytest.mark.parametrize(("error", "first", "whole"), QUOTES)
def test_an_error_of_somebody_else_s_is_quoted(error: Exception, first: str, whole: str) -> None:
    assert one_line(error) == first
    assert whole_in_one_line(error) == whole
