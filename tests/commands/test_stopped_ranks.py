"""A rank that was stopped is ended; one that sleeps, or is stopped for a while, is not."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from ppo1_lightning.commands import stopped_ranks

pytestmark = pytest.mark.heavy


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    monkeypatch.setattr(stopped_ranks, "_children", lambda: [process.pid for process in processes])
    monkeypatch.setattr(stopped_ranks, "PATIENCE", 2)
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_stopped_rank_is_named_and_ended(
    ranks: list[subprocess.Popen[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), stopped_ranks.stopped_ranks_ended(2):
        ranks[1].send_signal(signal.SIGSTOP)
        assert ranks[1].wait(20) == -signal.SIGKILL
    assert caplog.messages == ["rank 1 has been stopped for 2 s and is ended"]
    assert ranks[0].poll() is None


def test_one_that_goes_on_in_time_stays(ranks: list[subprocess.Popen[bytes]]) -> None:
    with stopped_ranks.stopped_ranks_ended(2):
        ranks[0].send_signal(signal.SIGSTOP)
        time.sleep(1.2)
        ranks[0].send_signal(signal.SIGCONT)
        time.sleep(2.2)
    assert ranks[0].poll() is None
