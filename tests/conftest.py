"""Options and settings of all tests; what is not marked ``heavy`` starts and compiles nothing."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
import pytest

HEAVY = [
    ("subprocess.Popen.__init__", "starts a process"),
    ("multiprocessing.process.BaseProcess.start", "starts a process"),
    ("os.fork", "starts a process"),
    ("os.posix_spawn", "starts a process"),
    ("os.system", "starts a process"),
    ("ppo1_lightning.fast.graphs.compile_ahead", "compiles a graph"),
    ("torch.compile", "compiles a graph"),
    ("ppo1_lightning.fast.native.load", "compiles C++"),
]
"""(function, what it does); found in a cache or not: that depends on earlier tests."""

_caught = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        action="append",
        help="directory of recorded runs of the originals, *.npz; those of tests/ by default",
    )
    parser.addoption(
        "--accelerator",
        default="cpu",
        help="where recorded runs are replayed on one device: cpu (default) or gpu",
    )


def pytest_report_header() -> str:
    """Say what the paths are compared on: how sums round depends on it."""
    import torch  # here: with pytest-xdist, only workers need it before they start

    compiler = os.environ.get("CXX", "g++")
    found = compiler if shutil.which(compiler) else f"none ({compiler})"
    return f"processor: {torch.backends.cpu.get_cpu_capability()}; C++ compiler: {found}"


def pytest_configure(config: pytest.Config) -> None:
    """Compiled graphs are shared by all workers of a session, and by nothing else."""
    if not hasattr(config, "workerinput"):  # the process that starts pytest-xdist's workers
        os.environ.setdefault("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        os.environ["XDG_CACHE_HOME"] = folder.name


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep compiled graphs in a folder of its own, but not the headers that all begin with."""
    from ppo1_lightning.fast import inductor

    headers = inductor.precompiled_headers()
    monkeypatch.setattr(inductor, "precompiled_headers", lambda: headers)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ppo1_lightning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with heavy tests first: short ones remain when the workers come to an end."""
    heavy = {item.path for item in items if item.get_closest_marker("heavy")}
    items.sort(key=lambda item: item.path not in heavy)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Refuse what is heavy to a test without the mark, and to the fixtures that it asks for."""
    caught = item.stash.setdefault(_caught, [])
    with pytest.MonkeyPatch.context() as patch:
        _keep_what_a_command_sets(patch)
        if not any(map(item.get_closest_marker, ("heavy", "slow"))):
            for function, action in HEAVY:
                patch.setattr(function, _refusal(f"{action} ({function})", caught))
        return (yield)


def _keep_what_a_command_sets(patch: pytest.MonkeyPatch) -> None:
    """Undo, after a test, what a command sets for its process: it has run in that of all tests.

    Its handlers, above all: they write to what was stdout, which pytest closes with the test.
    """
    root = logging.getLogger()
    patch.setattr(root, "handlers", root.handlers[:])  # which Hydra changes in place
    for owner, name in [
        (logging.getLogger("ppo1_lightning"), "handlers"),
        (logging, "_logRecordFactory"),
        (threading, "excepthook"),
        (tempfile, "tempdir"),
        (sys, "argv"),
    ]:
        patch.setattr(owner, name, getattr(owner, name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test even where what it tests has caught the refusal and gone on."""
    result = yield
    if caught := item.stash[_caught]:
        pytest.fail(caught[0], pytrace=False)
    return result


def _refusal(action: str, caught: list[str]) -> Any:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        caught.append(f"a test that {action} needs the mark heavy: @pytest.mark.heavy")
        pytest.fail(caught[-1])

    return refuse


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
