"""C++ that is compiled when it is needed, and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppo1_lightning.fast import native


@pytest.mark.heavy
def test_it_is_compiled_again_for_a_change_in_a_header_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, header = tmp_path / "answer.cpp", tmp_path / "number.h"
    source.write_text('#include "number.h"\nextern "C" int answer() { return NUMBER; }\n')
    answers = []
    for number in (1, 2, 2):
        header.write_text(f"#define NUMBER {number}\n")
        answers.append(native.load(source).answer())
    assert answers == [1, 2, 2]
    assert len(list(native.cache_folder().glob("answer-*.so"))) == 2
