"""Run measured processes one after the other, and describe the machine that they ran on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import STARTED_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 1200.0
BUSY = 0.5
"""Load average above which something else seems to be running."""

console = Console(stderr=True)
report = Console(width=None if sys.stdout.isatty() else 120)
"""Where results go; `console` is for progress and warnings."""


def python(module: str, *arguments: str, interpreter: str | Path = sys.executable) -> list[str]:
    """Return the command that runs a module of this repository."""
    return [str(interpreter), "-m", module, *arguments]


def launch_environment() -> dict[str, str]:
    """Return the environment of a process that is launched now, from whatever folder."""
    return os.environ | {STARTED_VARIABLE: repr(time.time()), "PYTHONPATH": str(ROOT)}


def measure(command: Sequence[str]) -> dict[str, Any]:
    """Run a command and return the JSON object of its last line, or ``{"unavailable": why}``."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # MuJoCo leaves a log where it runs
            done = subprocess.run(
                command,
                cwd=folder,
                env=launch_environment(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"unavailable": str(error)}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
    console.print(f"[red]failed:[/] {' '.join(command)}\n{tail}", highlight=False)
    return {"unavailable": f"exit status {done.returncode}: {tail.splitlines()[-1:] or ''}"}


def median(results: Sequence[dict[str, Any]], key: str) -> float | None:
    """Return the median of a figure over the results that have it."""
    figures = [r[key] for r in results if r.get(key) is not None]
    return statistics.median(figures) if figures else None


def machine() -> dict[str, Any]:
    """Describe this machine as it is now; warn when it is not quiet."""
    load = os.getloadavg()[0]
    if load > BUSY:
        console.print(f"[yellow]warning:[/] load average {load:.2f}: something else is running")
    packages = ("torch", "lightning", "envpool", "numpy", "gymnasium")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average_at_start": load,
    }


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write a result where one is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
