"""Kill a run again and again, and see what is lost: ``python -m benchmarks.soak hours=6``.

CartPole on two devices, with evaluations and checkpoints, is sent SIGKILL, SIGTERM or SIGINT at
random and started again by the same command, ``resume=auto``, until the time is over. What is
counted goes to ``benchmarks/results/soak.json``.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, console, launch_environment, machine, python, write_json

WORDS = [
    "env=cartpole",
    "num_envs=4",
    "num_steps=64",
    "algo.minibatch_size=64",
    "compile=false",
    "mpi_workers=2",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "total_steps=null",
    "total_iterations=1000000000",
    "evaluation.every_steps=20000",
    "evaluation.episodes=4",
    "callbacks.checkpoint.every_n_iterations=5",
    "trainer.enable_progress_bar=false",
    "logger=csv",
    "resume=auto",
]

USUAL = {"hours": "6", "pause": "300"}

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the run, or go on with it."""
    command = python("ppo1_lightning", *WORDS, f"hydra.run.dir={folder / 'run'}")
    environment = {**launch_environment(), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=folder
        )


def stop(process: subprocess.Popen[bytes], number: int) -> float:
    """Send a signal; return the seconds until all of the run's processes have ended."""
    started = time.monotonic()
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return float("inf")
    return time.monotonic() - started


def rows(folder: Path) -> list[int]:
    """Return the iterations that have a row, in the order of the file."""
    file = folder / "run" / "csv" / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return [int(float(r["iteration"])) for r in csv.DictReader(stream) if r.get("iteration")]


def wait_for_rows(folder: Path, process: subprocess.Popen[bytes], seconds: float = 120) -> bool:
    """Wait until the run has written something; tell whether it has."""
    before, deadline = rows(folder)[-1:], time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if rows(folder)[-1:] != before:
            return True
        time.sleep(0.2)
    return False


def size(folder: Path) -> int:
    """Return the bytes of the run's folder."""
    return sum(file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file())


def soak(hours: float, pause: float, seed: int = 0) -> dict[str, Any]:
    """Kill and continue for so long, about every ``pause`` seconds; return what was counted."""
    chance, ends = random.Random(seed), time.monotonic() + 3600 * hours
    kills = {signal.Signals(number).name: 0 for number in SIGNALS}
    slowest, problems, sizes = 0.0, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while time.monotonic() < ends:
            process = start(folder)
            if not wait_for_rows(folder, process):
                problems.append(f"after {sum(kills.values())} kills it did not go on")
                stop(process, signal.SIGKILL)
                break
            time.sleep(chance.uniform(0.1, 1.9) * pause)
            number = chance.choice(SIGNALS)
            seconds = stop(process, number)
            if number != signal.SIGKILL:
                slowest = max(slowest, seconds)
            kills[signal.Signals(number).name] += 1
            sizes.append(size(folder))
            console.print(f"{signal.Signals(number).name}: iteration {rows(folder)[-1]}")
        last = rows(folder)
        damaged = len(list((folder / "run").rglob("*.damaged")))
    expected = list(range(1, (last[-1] if last else 0) + 1))
    return {
        "hours": hours,
        "kills": kills,
        "iterations": last[-1] if last else 0,
        "rows_lost": len(set(expected) - set(last)),
        "rows_twice": len(last) - len(set(last)),
        "rows_in_order": last == sorted(last),
        "slowest_end_seconds": slowest,
        "damaged_checkpoints": damaged,
        "folder_bytes_first_and_last": [sizes[0], sizes[-1]] if sizes else [],
        "problems": problems,
    }


def main() -> None:
    words = {name: value for name, _, value in (word.partition("=") for word in sys.argv[1:])}
    try:
        hours, pause = (float(words.pop(name, usual)) for name, usual in USUAL.items())
    except ValueError:
        hours = pause = 0.0
    if words or not (hours > 0 and pause > 0):
        sys.exit(f"{' '.join(sys.argv[1:])}: expected hours=NUMBER and pause=SECONDS, above 0")
    result = soak(hours, pause)
    write_json(ROOT / "benchmarks" / "results" / "soak.json", {"machine": machine(), **result})
    console.print(result)


if __name__ == "__main__":
    main()
