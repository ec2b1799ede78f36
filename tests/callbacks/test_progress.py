"""`Progress` under a real Trainer, on a terminal and off it."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standin import StandIn, StandInData, trainer

from ppo1_lightning.callbacks import Progress
from ppo1_lightning.callbacks.progress import status
from ppo1_lightning.errors import ConfigurationError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fit(progress: Progress, module: StandIn, data: StandInData, out: Any = None) -> None:
    """Train, with ``out`` for stdout (not that of pytest, which is no terminal)."""
    run = trainer(progress, enable_progress_bar=True)
    with contextlib.redirect_stdout(out or sys.stdout):
        run.fit(module, data)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Return a function that gives the log's lines; stdout is not a terminal."""
    caplog.set_level(logging.INFO, logger="ppo1_lightning")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "ppo1_lightning"]


def test_lines_off_a_terminal(lines: Any) -> None:
    fit(Progress(refresh_seconds=0), StandIn([math.nan, 2.0]), StandInData(4))
    assert [line.split(" | ")[:4] for line in lines()] == [
        ["25.0 %", "10 steps", "1,234 steps/s", "return -"],
        ["50.0 %", "20 steps", "1,234 steps/s", "return 2.00"],
        ["75.0 %", "30 steps", "1,234 steps/s", "return 2.00"],
        ["100.0 %", "40 steps", "1,234 steps/s", "return 2.00"],
        ["100.0 %", "40 steps", "1,234 steps/s", "return 2.00"],
    ]


def test_one_line_in_a_while(lines: Any) -> None:
    fit(Progress(), StandIn(), StandInData(50))
    assert [line.split(" | ")[1] for line in lines()] == ["10 steps", "500 steps"]


def test_time_left(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 seconds an iteration; a resumed run counts only what it did itself."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    module = StandIn([0.0], lambda iteration: setattr(clock, "now", clock.now + 7.0))
    module.counters.iterations = 16
    fit(Progress(refresh_seconds=0), module, StandInData(20, known_length=False))
    assert [line.split("ETA ")[1] for line in lines()] == [
        "0:00:21",
        "0:00:14",
        "0:00:07",
        "0:00:00",
        "0:00:00",
    ]


@pytest.mark.heavy
def test_bar_on_a_terminal(lines: Any) -> None:
    fit(Progress(), StandIn([2.5]), StandInData(500), terminal := Terminal())
    text = terminal.getvalue()
    shown = "5,000 steps | 1,234 steps/s | return 2.50 | length - | ETA 0:00:00"
    assert f"{20 * '#'} 100.0 % | {shown}" in text
    assert text.count("steps/s") < 50  # not once an iteration
    assert text.endswith("\n")  # the terminal is given back
    assert lines() == []


def test_the_bar_is_over_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the loader does not know when the budget is spent."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    module = StandIn([0.0], lambda iteration: setattr(clock, "now", clock.now + 1.0))
    fit(Progress(), module, StandInData(4, known_length=False), terminal := Terminal())
    bars = [line for line in terminal.getvalue().split("\r") if "steps/s" in line]
    assert sorted({line.count("#") for line in bars}) == [5, 10, 15, 20]


def test_an_error_gives_the_terminal_back() -> None:
    def fail(iteration: int) -> None:
        if iteration == 2:
            raise RuntimeError("broken")

    terminal = Terminal()
    with pytest.raises(RuntimeError, match="broken"):
        fit(Progress(), StandIn([0.0], fail), StandInData(5), terminal)
    assert terminal.getvalue().endswith("\n")
    assert "40.0 % | 20 steps" in terminal.getvalue().rstrip().split("\r")[-1]


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_a_module_can_print(out: type[io.StringIO]) -> None:
    module = StandIn([0.0], lambda iteration: module.print("said", iteration))
    fit(Progress(), module, StandInData(2), written := out())
    assert "said 1\n" in written.getvalue()


def test_disabled_shows_nothing(lines: Any) -> None:
    progress = Progress(refresh_seconds=0)
    progress.disable()
    fit(progress, StandIn(), StandInData(3))
    assert lines() == []


def test_no_budget_and_no_logging_set_up(lines: Any) -> None:
    module, data = StandIn(), StandInData(3)
    module.on_train_start = lambda: None  # its end comes from the loader
    module._stop_when_spent = lambda: None
    progress = Progress(refresh_seconds=0)
    run = trainer(progress, enable_progress_bar=True, max_epochs=1)
    run.fit(module, data.train_dataloader())
    assert lines()[-1] == "- % | 30 steps | 1,234 steps/s | return 0.00 | length - | ETA -"


def test_costs_nothing_between_updates(lines: Any, tmp_path: Path) -> None:
    progress, module = Progress(refresh_seconds=1000), StandIn()
    fit(progress, module, StandInData(1))
    progress.on_train_start(module.trainer, module)
    progress.on_train_batch_end(module.trainer, module, None, None, 0)  # shows the first line
    start = time.perf_counter()
    for index in range(1000):
        progress.on_train_batch_end(module.trainer, module, None, None, index)
    assert (time.perf_counter() - start) / 1000 < 50e-6


def test_status_with_extreme_numbers() -> None:
    metrics = {"steps_per_second": 1e7, "episode_return_mean": -1234.5}
    text = status(1e-12, 2**40, metrics, 1e30)
    assert text.startswith("0.0 % | 1,099,511,627,776 steps | 10,000,000 steps/s | ")
    assert "return -1,234.50" in text


@pytest.mark.parametrize("seconds", [-1, math.nan, "soon", None])
def test_bad_interval(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="refresh_seconds"):
        Progress(refresh_seconds=seconds)
