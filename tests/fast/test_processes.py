"""Compilers end with the run that waits for them."""

from __future__ import annotations

import threading
import time

import pytest

from ppo1_lightning.fast import processes

pytestmark = pytest.mark.heavy


def test_what_was_said_and_how_it_ended() -> None:
    done = processes.run(["sh", "-c", "echo here; echo there >&2; exit 3"])
    assert (done.stdout, done.stderr, done.returncode) == ("here\n", "there\n", 3)


def test_they_end_with_us() -> None:
    """And so do those that they have started, which hold the pipe; none is started after that."""
    ended: list[object] = []

    def compile() -> None:
        ended.append(processes.run(["sh", "-c", "sleep 60; echo"]).returncode)
        with pytest.raises(RuntimeError, match="told to stop"):
            processes.run(["true"])

    thread = threading.Thread(target=compile)

    @processes.ended_with_us()
    def work() -> None:
        thread.start()
        while not processes._running:
            time.sleep(0.01)
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        work()
    thread.join(20)
    assert ended == [-9]
    with processes.ended_with_us():  # another run
        assert not processes.run(["true"]).returncode
