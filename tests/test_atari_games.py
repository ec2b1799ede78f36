"""Compiled runs of Atari games, whatever their pictures: the first ones above all."""

from __future__ import annotations

import pytest
from atari_games import games, train_all

SOME = ("Breakout",)  # on black


@pytest.mark.heavy
def test_some_games() -> None:
    assert [trained.path for trained in train_all(SOME)] == ["compiled"] * len(SOME)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_games() -> None:
    names = games()
    assert len(names) > 50
    assert {t.game: t.path for t in train_all(names) if t.path != "compiled"} == {}
