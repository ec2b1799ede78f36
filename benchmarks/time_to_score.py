"""Wall time from a command's start until its mean return reaches a score, and until its end.

``python -m benchmarks.time_to_score 475 env=cartpole seed=1``
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import emit
from benchmarks.processes import launch_environment, machine, python, write_json

POLL_SECONDS = 0.1


def measure(score: float, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train in ``folder`` and watch its CSV file, which gets each row at once."""
    started = time.perf_counter()
    command = python("ppo1_lightning", *overrides, f"hydra.run.dir={folder}")
    reached: dict[str, float] = {}
    last: dict[str, float] = {}
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=launch_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        for row in rows_while(process, folder / "csv" / "metrics.csv"):
            last = {name: float(row[name]) for name in ("env_steps", "episode_return_mean")}
            if not reached and last["episode_return_mean"] >= score:
                reached = {"seconds": time.perf_counter() - started, **last}
    return {
        "command": "python -m ppo1_lightning " + " ".join(overrides),
        "score": score,
        "reached": reached or None,
        "end": {"seconds": time.perf_counter() - started, **last},
        "exit_status": process.returncode,
    }


def rows_while(process: subprocess.Popen[bytes], file: Path) -> Iterator[dict[str, str]]:
    """Yield each row when it appears, until the process ends."""
    seen, running = 0, True
    while running:
        running = process.poll() is None
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
        yield from rows[seen:]
        seen = len(rows)
        if running:
            time.sleep(POLL_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("score", type=float, help="of episode_return_mean")
    parser.add_argument("overrides", nargs="+", help="arguments of our command line")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_intermixed_args()
    host = machine()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.score, arguments.overrides, Path(folder))
        if result["exit_status"] != 0:
            print((Path(folder) / "output.txt").read_text(encoding="utf-8")[-4000:])
    write_json(arguments.json, {"machine": host, **result})
    emit(result)


if __name__ == "__main__":
    main()
