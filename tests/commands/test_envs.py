"""``python -m ppo1_lightning envs``: its table, and where that can be written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ppo1_lightning.commands import envs


@pytest.mark.parametrize("output", ["", ".", "/proc/1/x", "no/x.md", "x" * 300, "/dev/full"])
def test_a_table_that_cannot_be_written_is_told_in_one_line(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["envs", "CartPole-v1", f"--output={output}"])
    with pytest.raises(SystemExit) as end:
        envs.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --output={output} ")


def test_an_interrupted_check_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(env_ids: Sequence[str], workers: int) -> Iterator[envs.Checked]:
        yield envs.Checked(env_ids[0], "trains", "", 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(envs, "check", interrupted)
    table = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["envs", "CartPole", "--check", f"--output={table}"])
    with pytest.raises(KeyboardInterrupt):
        envs.main()
    title, _, row = table.read_text().splitlines()
    assert title == "| env_id | outcome | said | seconds |"
    assert "| trains |" in row


def test_a_cell_of_a_table_is_nothing_else(tmp_path: Path) -> None:
    rows = [("<b>|\n\x1b[31m", "x")]
    envs.write(tmp_path / "a.md", ("a", "b"), rows)
    last = (tmp_path / "a.md").read_text().splitlines()[2:]
    assert last == ["| &lt;b&gt;\\| \\x1b[31m | x |"]


def test_a_refusal_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    envs._print([envs.Listed("A-v0", refusal="expected [bold] or [/red]")])
    assert "expected [bold] or [/red]" in capsys.readouterr().out
