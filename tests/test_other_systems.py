"""Training, evaluation, resuming and a report with what only Linux has taken away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

TAKEN_AWAY = """
import os, signal, sys, types
import ctypes, logging.handlers, multiprocessing, subprocess, tempfile  # what they ask the system
import hydra, lightning, matplotlib, torch, torch.utils.tensorboard  # for is theirs
import torch.distributed.launcher.api
from ppo1_lightning import system

for name in ("fcntl", "resource", "envpool"):
    sys.modules[name] = None
names = ("sched_getaffinity", "sched_setaffinity", "setsid", "setpgid", "getuid", "sysconf",
         "getpgid", "killpg", "mkfifo", "fork")
for name in names:
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGQUIT"):
    delattr(signal, name)
system.sys = types.SimpleNamespace(platform="win32")
system.STOPS, system.HANG_UP, system.REQUEUE = system.STOPS[:2], None, None

from ppo1_lightning.__main__ import main
sys.exit(main())
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TAKEN_AWAY, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_run_from_its_start_to_its_report(tmp_path: Path) -> None:
    usual = ["env=cartpole", "env.backend=auto", "num_envs=2", "num_steps=32", "trainer=cpu"]
    usual += ["algo.minibatch_size=32", "logger=csv"]
    for words in (
        ["total_steps=256", "hydra.run.dir=run", *usual],
        ["total_steps=512", "run=run", *usual],
        ["evaluate", "run=run", "episodes=4"],
        ["report", "run"],
    ):
        done = run(tmp_path, *words)
        assert done.returncode == 0, (words, done.stderr)
    rows = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(n) for n in range(64, 513, 64)]
    assert (tmp_path / "run" / "report.html").is_file()


def test_an_id_of_envpool_s_is_told_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "env=pong", "total_steps=256", "hydra.run.dir=run")
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: environment 'Pong-v5' needs EnvP")
    )
