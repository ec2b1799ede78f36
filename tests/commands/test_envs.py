"""``python -m ppo1_lightning envs``: its table, and where that can be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from tiny_runs import train_tiny

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


class Own(gymnasium.Env[Any, Any]):
    """Ends its process in a step, where it is told to."""

    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)

    def __init__(self, ends: bool = False) -> None:
        self._ends = ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        if self._ends:
            os._exit(0)
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Own-v0", Own)  # type: ignore[arg-type]
gymnasium.register("OwnEnds-v0", Own, kwargs={"ends": True})  # type: ignore[arg-type]


def test_an_environment_of_the_user_s_own_is_listed() -> None:
    (env_id,) = envs.matching("test_envs:Own-v0")
    row = envs.listed(env_id)
    assert row[1:] == ("Box(shape=(2,), float32)", "Discrete(2)", "MLP", "gymnasium", "")


def test_a_module_s_environments_are_listed() -> None:
    own = ["test_envs:Own-v0", "test_envs:OwnEnds-v0", "test_envs:Wanderer-v0"]
    assert envs.matching("test_envs:*") == envs.matching("test_envs:") == own
    assert envs.matching("test_envs:own*") == own[:2]
    assert envs.matching("test_envs:CartPole-v1") == ["test_envs:CartPole-v1"]  # as env= takes it
    assert envs.matching("no_such_module:*") == ["no_such_module:*"]  # refused in its row


@pytest.mark.heavy
def test_an_environment_that_ends_the_process_does_not_train() -> None:
    checked = [*envs.check(["test_envs:Own-v0", "test_envs:OwnEnds-v0"], 2)]
    assert [row.outcome for row in checked] == ["trains", "crash"]
    assert checked[1].said == "it ended the process, exit status 0"


def test_what_is_not_made_is_not_said_to_be_refused(capsys: pytest.CaptureFixture[str]) -> None:
    envs._print([envs.Listed("ALE/A-v5", policy="auto")])
    assert "1 of Gymnasium's are not made to look and may be" in capsys.readouterr().out


class Wanderer(Own):
    """Goes to another folder, as what reads files beside itself may."""

    def __init__(self, place: str) -> None:
        super().__init__()
        os.chdir(place)


gymnasium.register("Wanderer-v0", Wanderer)  # type: ignore[arg-type]


def test_where_an_environment_goes_does_not_move_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "place").mkdir()
    words = ["env=test_envs:Wanderer-v0", f"+env.options.place={tmp_path / 'place'}"]
    train_tiny(Path("run"), *words)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert "everything is in run; next" in capsys.readouterr().out
