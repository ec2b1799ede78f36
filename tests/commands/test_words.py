"""``python -m ppo1_lightning COMMAND``, and where the commands were in 0.1."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from tiny_runs import train_tiny

from ppo1_lightning import __main__ as command_line

TOOLS = ("evaluate", "record", "play", "export", "report")


def run_module(module: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE`` in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


@pytest.mark.parametrize("command", [*TOOLS, "tune"])
def test_the_first_word_picks_the_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sees the other words alone."""
    seen: list[list[str]] = []
    module = types.SimpleNamespace(main=lambda: seen.append(sys.argv[1:]))
    monkeypatch.setitem(sys.modules, f"ppo1_lightning.commands.{command}", module)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["ppo1-lightning", command, "run=x", "-m"])
    command_line.main()
    assert seen == [["run=x", "-m"]]


@pytest.mark.parametrize("words", [["train", "seed=1"], ["seed=1"], ["-m", "seed=1,2"], []])
def test_train_is_the_command_without_a_word(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppo1_lightning.commands import config

    seen: list[tuple[object, str, list[str]]] = []
    monkeypatch.setattr(config, "run", lambda task, name: seen.append((task, name, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["ppo1-lightning", *words])
    command_line.main()
    rest = [word for word in words if word != "train"]
    assert seen == [(command_line.train_or_search, "train", rest)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("word", "hint"), [("evalute", "did you mean 'evaluate'"), ("tran", "did you mean 'train'")]
)
def test_a_misspelled_command_ends_in_one_line(word: str, hint: str, tmp_path: Path) -> None:
    done = run_module("ppo1_lightning", word, "run=x", folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert repr(word) in line
    assert hint in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.heavy
def test_the_old_form_works_with_a_notice(tmp_path: Path) -> None:
    """Both forms evaluate the same run; the old one says in one line what it is called now."""
    run = train_tiny(tmp_path / "run", "env=cartpole", "logger=csv")
    words = [f"run={run}", "episodes=2", "num_envs=1"]
    new = run_module("ppo1_lightning", "evaluate", *words, folder=tmp_path)
    old = run_module("ppo1_lightning.evaluate", *words, folder=tmp_path)
    assert (new.returncode, old.returncode) == (0, 0), new.stderr + old.stderr
    notice = "python -m ppo1_lightning.evaluate is now python -m ppo1_lightning evaluate"
    assert [line for line in old.stderr.splitlines() if notice in line] == [
        line for line in old.stderr.splitlines() if "old form" in line
    ]
    assert old.stderr.count(notice) == 1
    assert notice not in new.stderr
    assert "episodes" in new.stdout
    assert old.stdout == new.stdout


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at Linux's /proc")
@pytest.mark.parametrize("words", [["env=cartpole"], ["evaluate", "run=x"]])
def test_an_interruption_while_things_are_imported_says_nothing(
    words: list[str], tmp_path: Path
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "ppo1_lightning", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        # where it is ignored, as of a job in the background, Python leaves it so
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    maps = Path(f"/proc/{child.pid}/maps")
    while "libtorch" not in maps.read_text() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, b"")
