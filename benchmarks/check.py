"""Compare ratios that hardly depend on the machine with `limits.json`: ``make bench-check``.

Each is a time over a time, so that more is worse. Exit status 1 where one exceeds its limit.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from benchmarks.processes import ROOT, machine, measure, python, report

CASE, SHORT = "halfcheetah_8x256", "cartpole"
REPEATS = 3
COMMANDS = {
    "simulator": python("benchmarks.simulator", CASE, "--seconds=4"),
    "rollout": python("benchmarks.simulator", CASE, "--seconds=4", "--policy"),
    "compiled": python("benchmarks.ours", CASE, "--seconds=6"),
    "traced": python("benchmarks.ours", CASE, "--seconds=6", "compile=trace"),
    "eager": python("benchmarks.ours", CASE, "--seconds=6", "compile=false"),
    "cartpole_simulator": python("benchmarks.simulator", SHORT, "--seconds=4"),
    "cartpole": python("benchmarks.ours", SHORT, "--seconds=6"),
    "import": [
        sys.executable,
        "-c",
        "import json, time; start = time.perf_counter(); import torch, lightning; "
        "middle = time.perf_counter(); from ppo1_lightning import *; end = time.perf_counter(); "
        "print(json.dumps({'ratio': (end - middle) / (middle - start)}))",
    ],
}


def measure_ratios() -> dict[str, float]:
    """Measure everything in turns and return the medians of the ratios of each turn."""
    turns = [{name: measure(command) for name, command in COMMANDS.items()} for _ in range(REPEATS)]
    for turn in turns:
        for name, result in turn.items():
            if "unavailable" in result:
                sys.exit(f"{name} could not be measured: {result['unavailable']}")
    ratios = [ratios_of(turn) for turn in turns]
    return {name: statistics.median(r[name] for r in ratios) for name in ratios[0]}


def ratios_of(turn: dict[str, Any]) -> dict[str, float]:
    """Return the ratios of one result of each command."""
    speed = {name: turn[name].get("steps_per_second") for name in turn}
    shares = turn["compiled"]["shares"]
    return {
        "rollout_over_simulator_time": speed["simulator"] / speed["rollout"],
        "training_over_simulator_time": speed["simulator"] / speed["compiled"],
        "compiled_over_eager_update_time": turn["compiled"]["update_seconds"]
        / turn["eager"]["update_seconds"],
        "traced_over_eager_update_time": turn["traced"]["update_seconds"]
        / turn["eager"]["update_seconds"],
        "cartpole_training_over_simulator_time": speed["cartpole_simulator"] / speed["cartpole"],
        "lightning_and_logging_share": shares["lightning"] + shares["logging"],
        "import_over_torch_and_lightning": turn["import"]["ratio"],
    }


def main() -> None:
    limits = json.loads((ROOT / "benchmarks" / "limits.json").read_text(encoding="utf-8"))
    machine()  # warns when it is not quiet
    failed = False
    for name, ratio in measure_ratios().items():
        exceeded = ratio > limits[name]
        failed |= exceeded
        colour = "red" if exceeded else "green"
        verdict = "exceeds its limit" if exceeded else "is within its limit"
        report.print(f"[{colour}]{name}: {ratio:.3f} {verdict} {limits[name]}", highlight=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
