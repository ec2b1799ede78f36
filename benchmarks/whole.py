"""Wall time of whole short runs, from the command to its end: ``python -m benchmarks.whole``.

Ours beside the peers with the same sizes, everything else at its defaults: *cold* has nothing in
its cache of compiled graphs, *warm* what a run with ``compile=true`` has left there. In turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.processes import (
    ROOT,
    console,
    launch_environment,
    machine,
    python,
    report,
    write_json,
)
from benchmarks.run import peer_python

STEPS = {"halfcheetah_8x256": 120_000, "halfcheetah_1x2048": 120_000, "cartpole": 100_000}
"""Environment steps of each case."""

PEERS = ("sb3", "sbx", "rlox")
SYSTEMS = ("cold", "warm", *PEERS)


def command(system: str, case: str, folder: Path) -> list[str]:
    """Return the command of one run."""
    steps = STEPS[case]
    if system in PEERS:
        module, interpreter = f"benchmarks.peers.{system}", peer_python(system)
        return python(module, case, f"--steps={steps}", interpreter=interpreter)
    compiled = "true" if system == "fill" else "auto"
    words = [*CASES[case], f"total_steps={steps}", f"compile={compiled}", "trainer.accelerator=cpu"]
    return python("ppo1_lightning", *words, f"hydra.run.dir={folder / 'run'}")


def seconds_of(system: str, case: str, cache: Path) -> float:
    """Run it once in a folder of its own; return its wall time.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = folder if system == "cold" else cache
        environment = launch_environment() | {"XDG_CACHE_HOME": str(place)}
        words = command(system, case, folder)
        started = time.perf_counter()
        subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)
        return time.perf_counter() - started


def run(cases: list[str], systems: list[str], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Measure everything ``repeats`` times, in turns; return the seconds by case and system."""
    results: dict[str, dict[str, list[float]]] = {c: {s: [] for s in systems} for c in cases}
    with tempfile.TemporaryDirectory() as cache:
        for case in cases if "warm" in systems else ():
            seconds_of("fill", case, Path(cache))
        for repeat in range(repeats):
            for case, of_case in results.items():
                for system, seconds in of_case.items():
                    console.print(f"{repeat + 1}/{repeats} {case} {system}", highlight=False)
                    seconds.append(seconds_of(system, case, Path(cache)))
    return results


def show(results: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, and how many times as long as ours each takes."""
    table = Table("case", "steps", "system", "seconds (min-max)", "/ cold", "/ warm")
    for case, of_case in results.items():
        medians = {system: statistics.median(seconds) for system, seconds in of_case.items()}
        for system, seconds in of_case.items():
            text = f"{medians[system]:.1f} ({min(seconds):.1f}-{max(seconds):.1f})"
            ours = (medians.get(name) for name in ("cold", "warm"))
            ratios = (f"{medians[system] / own:.2f}" if own else "-" for own in ours)
            table.add_row(case, f"{STEPS[case]:,}", system, text, *ratios)
        table.add_section()
    report.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(STEPS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=3)
    default = ROOT / "benchmarks" / "results" / "whole.json"
    parser.add_argument("--json", type=Path, default=default)
    arguments = parser.parse_intermixed_args()
    if unknown := set(arguments.cases) - set(STEPS):
        parser.error(f"unknown case {min(unknown)}, expected some of {', '.join(STEPS)}")
    for peer in set(PEERS).intersection(arguments.systems):
        if not peer_python(peer).exists():
            parser.error(f"{peer} is not installed: python -m benchmarks.setup_peers {peer}")
    host: dict[str, Any] = machine()
    results = run(arguments.cases or [*STEPS], arguments.systems, arguments.repeats)
    show(results)
    write_json(arguments.json, {"machine": host, "steps": STEPS, "seconds": results})


if __name__ == "__main__":
    main()
