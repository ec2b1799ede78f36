"""Measure our training: ``python -m benchmarks.ours halfcheetah_8x256 [--bare] [key=value ...]``.

Without ``--bare`` it is the real command line in a process of its own, with the default loggers and
callbacks and a stopwatch among them; with it, our collection and update in a bare loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, COMMON
from benchmarks.measure import emit, parse_case
from benchmarks.processes import launch_environment, python
from ppo1_lightning.commands.process import spin_briefly


def measure_command_line(case: str, seconds: float, overrides: list[str]) -> dict[str, Any]:
    """Train through ``python -m ppo1_lightning`` until enough is measured."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stopwatch.json"
        stopwatch = {
            "_target_": "benchmarks.stopwatch.Stopwatch",
            "file": file,
            "seconds": seconds,
        }
        command = python(
            "ppo1_lightning",
            *CASES[case],
            *COMMON,
            *overrides,
            f"hydra.run.dir={folder}/run",
            *(f"+callbacks.stopwatch.{name}={value}" for name, value in stopwatch.items()),
        )
        done = subprocess.run(
            command, cwd=folder, env=launch_environment(), capture_output=True, text=True
        )
        if not file.exists():
            sys.exit((done.stdout + done.stderr)[-4000:] or "the run wrote nothing")
        return json.loads(file.read_text(encoding="utf-8"))


def main() -> None:
    parser = parse_case(list(CASES), __doc__)
    parser.add_argument("--bare", action="store_true", help="no Trainer, loggers, callbacks")
    parser.add_argument("overrides", nargs="*", help="further arguments of our command line")
    arguments = parser.parse_intermixed_args()
    if arguments.bare:
        spin_briefly()  # as the command line does, before PyTorch is loaded
        from benchmarks.bare import Bare

        bare = Bare(arguments.case, arguments.overrides)
        emit(bare.run(arguments.seconds, learn=True))
    else:
        emit(measure_command_line(arguments.case, arguments.seconds, arguments.overrides))


if __name__ == "__main__":
    main()
