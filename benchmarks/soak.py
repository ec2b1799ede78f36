"""Stop runs again and again, and see what is lost: ``python -m benchmarks.soak hours=6``.

CartPole and Breakout in turns, each on two devices, with evaluations and checkpoints often. About
``pause`` seconds after it has begun to write, a run is sent SIGKILL, SIGTERM or SIGINT, or its disk
is full, and later it is started again by the same command, ``resume=auto``, until the time is over.
What is counted goes to ``benchmarks/results/soak.json``, also after each stop. With ``folder=DIR``
the runs and what was seen of them stay there, and the same command goes on with both: hours may be
spent in parts. Linux only.
"""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.processes import ROOT, console, launch_environment, machine, python, write_json

WORDS = [
    "num_envs=4",
    "mpi_workers=2",
    "compile=trace",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "total_steps=null",
    "total_iterations=1000000000",
    "evaluation.episodes=2",
    "evaluation.num_envs=2",
    "callbacks.checkpoint.every_n_iterations=5",
    "algo.log_every=1",
    "trainer.enable_progress_bar=false",
    "resume=auto",
]

CASES = {
    "cartpole": ["num_steps=64", "algo.minibatch_size=64", "evaluation.every_steps=5000"],
    "breakout": ["num_steps=32", "algo.minibatch_size=64", "evaluation.every_steps=1000"],
}

USUAL = {"hours": "6", "pause": "300", "seed": "0"}

FULL_DISK = "full disk"

FAULTS = ("SIGKILL", "SIGTERM", "SIGINT", FULL_DISK)

QUARTERS = 4
"""Parts of the time whose largest memory, handles and folders are told."""


def start(case: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the run, or go on with it; what it prints is in ``folder / "log.txt"``."""
    words = [f"env={case}", *WORDS, *CASES[case], f"hydra.run.dir={folder / 'run'}"]
    environment = {**launch_environment(), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            python("ppo1_lightning", *words),
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            cwd=folder,
        )


def stop(process: subprocess.Popen[bytes], fault: str, folder: Path) -> float:
    """Let a fault happen; return the seconds until the run has ended."""
    started = time.monotonic()
    if fault == "SIGKILL":
        kill(process.pid)
    elif fault == FULL_DISK:  # no file may grow beyond half of a checkpoint
        limit = largest(folder) // 2
        for pid in processes(process.pid):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
    else:
        process.send_signal(signal.Signals[fault])
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        kill(process.pid)
        process.wait()
        return float("inf")
    return time.monotonic() - started


def processes(pid: int) -> list[int]:
    """Return a process and its descendants: the run, its ranks and what they have started."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return [pid, *(below for child in children for below in processes(child))]


def kill(pid: int) -> None:
    """Send SIGKILL to all processes of a run; ranks are in sessions of their own."""
    for process in processes(pid):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def use(pid: int, folder: Path) -> dict[str, float]:
    """Return what a run holds: resident memory in MiB, file handles, its folder in MB."""
    pids = processes(pid)
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return {
        "memory": sum(pages) * resource.getpagesize() / 2**20,
        "handles": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        "folder": sum(sizes(folder)) / 1e6,
    }


def sizes(folder: Path) -> Iterator[int]:
    """Yield the bytes of each file of the run."""
    return (file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file())


def largest(folder: Path) -> int:
    """Return the bytes of its checkpoint."""
    return (folder / "run" / "checkpoints" / "last.ckpt").stat().st_size


def rows(folder: Path) -> list[int]:
    """Return the iterations that have a row, in the order of the file."""
    file = folder / "run" / "csv" / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return [int(float(r["iteration"])) for r in csv.DictReader(stream) if r.get("iteration")]


def wait_for_rows(folder: Path, process: subprocess.Popen[bytes], seconds: float = 1200) -> bool:
    """Wait until the run has written a row and a checkpoint; tell whether it has."""
    before, deadline = rows(folder)[-1:], time.monotonic() + seconds
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    while time.monotonic() < deadline and process.poll() is None:
        if rows(folder)[-1:] != before and checkpoint.exists():
            return True
        time.sleep(0.2)
    return False


def runs_for(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    """Wait so long; tell whether the run goes on."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is None


class Case:
    """One run that is stopped and continued, and what was seen of it (kept in ``seen.json``)."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.stops: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.slowest = 0.0
        self.seen: list[dict[str, float]] = []
        self.problems: list[str] = []
        folder.mkdir(exist_ok=True)
        if (folder / "seen.json").exists():
            vars(self).update(json.loads((folder / "seen.json").read_text()))

    @property
    def clock(self) -> float:
        """Seconds after which it was seen last."""
        return self.seen[-1]["clock"] if self.seen else 0.0

    def keep(self) -> None:
        """Write what was seen, for a soak that goes on later."""
        names = ("stops", "slowest", "seen", "problems")
        new = self.folder / "seen.new"
        write_json(new, {name: getattr(self, name) for name in names})
        new.replace(self.folder / "seen.json")

    def go_on(self, seconds: float, fault: str, clock: float) -> bool:
        """Start, wait, stop; return False where the run did not go on."""
        process = start(self.name, self.folder)
        try:
            return self.watch(process, seconds, fault, clock)
        finally:  # by Ctrl-C too: what goes on later must find the folder free
            if process.poll() is None:
                kill(process.pid)
                process.wait()

    def watch(
        self, process: subprocess.Popen[bytes], seconds: float, fault: str, clock: float
    ) -> bool:
        """Wait, stop, and take down what was seen."""
        if not (wait_for_rows(self.folder, process) and runs_for(seconds, process)):
            said = (self.folder / "log.txt").read_text(errors="replace")[-2000:]
            self.problems.append(f"after {sum(self.stops.values())} stops it did not go on: {said}")
            return False
        self.seen.append({"clock": clock, **use(process.pid, self.folder)})
        took = stop(process, fault, self.folder)
        self.slowest = max(self.slowest, took)
        self.stops[fault] += 1
        console.print(f"{self.name}, {fault}: iteration {rows(self.folder)[-1]}, {took:.1f} s")
        if "Traceback" in (said := (self.folder / "log.txt").read_text(errors="replace")):
            self.problems.append(f"{fault}: {said[-2000:]}")
        return True

    def result(self, end: float) -> dict[str, Any]:
        """Return what was counted, the largest of each figure by parts of the time."""
        done = rows(self.folder)
        last = done[-1] if done else 0
        parts = [
            {name: max(seen[name] for seen in part) for name in ("memory", "handles", "folder")}
            for quarter in range(QUARTERS)
            if (part := [s for s in self.seen if int(s["clock"] / end * QUARTERS) == quarter])
        ]
        return {
            "stops": self.stops,
            "iterations": last,
            "rows_lost": last - len(set(done)),
            "rows_twice": len(done) - len(set(done)),
            "rows_in_order": done == sorted(done),
            "damaged_checkpoints": len(list((self.folder / "run").rglob("*.damaged"))),
            "slowest_end_seconds": self.slowest,
            "quarters": parts,
            "problems": self.problems,
        }


def soak(hours: float, pause: float, seed: float = 0, folder: str = "") -> dict[str, Any]:
    """Stop and continue for so long, about every ``pause`` seconds; return what was counted."""
    about = {"machine": machine(), "hours": hours, "pause": pause}
    with ExitStack() as stack:
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        place.mkdir(parents=True, exist_ok=True)
        cases = [Case(case, place / case) for case in CASES]
        before, end = max(case.clock for case in cases), 3600 * hours
        cases.sort(key=lambda case: case.clock)  # whose turn it is
        result = {case.name: case.result(end) for case in cases}
        chance, began = random.Random(seed + before), time.monotonic() - before
        while (clock := time.monotonic() - began) < end and cases:
            cases.append(case := cases.pop(0))  # in turns
            if not case.go_on(chance.uniform(0.1, 1.9) * pause, chance.choice(FAULTS), clock):
                cases.remove(case)
            case.keep()
            result[case.name] = case.result(end)
            write_json(ROOT / "benchmarks" / "results" / "soak.json", {**about, **result})
    return result


def table(result: dict[str, Any]) -> Table:
    """Return the result for reading: a column for each case."""
    shown = Table("", *result)
    for key in next(iter(result.values())):
        shown.add_row(key.replace("_", " "), *(_cell(case[key]) for case in result.values()))
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{v:.4g} {k}" for k, v in value.items())
    return "\n".join(map(_cell, value)) if isinstance(value, list) else str(value)


def main() -> None:
    words = {name: value for name, _, value in (word.partition("=") for word in sys.argv[1:])}
    folder = words.pop("folder", "")
    try:
        hours, pause, seed = (float(words.pop(name, usual)) for name, usual in USUAL.items())
    except ValueError:
        hours = pause = seed = 0.0
    if words or not (hours > 0 and pause > 0):
        sys.exit(f"{' '.join(sys.argv[1:])}: expected hours=NUMBER and pause=SECONDS, above 0")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell's `&` ignores the first
        signal.signal(number, signal.default_int_handler)
    console.print(table(soak(hours, pause, seed, folder)))


if __name__ == "__main__":
    main()
