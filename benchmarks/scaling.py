"""How our speed and memory grow with environments, minibatch, network and devices.

``python -m benchmarks.scaling [num_envs minibatch_size hidden_size devices] [--seconds 5]``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.processes import ROOT, console, machine, measure, python, report, write_json
from benchmarks.run import number

CASE = "halfcheetah_8x256"
SWEEPS: dict[str, dict[int, list[str]]] = {
    "num_envs": {  # 2048 rows an iteration, or 16 steps of each where that is more
        n: [f"num_envs={n}", f"num_steps={max(2048 // n, 16)}"] for n in (1, 8, 64, 256, 1024)
    },
    "minibatch_size": {n: [f"algo.minibatch_size={n}"] for n in (32, 64, 256, 1024)},
    "hidden_size": {n: [f"policy.hidden_size={n}"] for n in (64, 128, 256, 512)},
    "devices": {n: [f"trainer.devices={n}", "mpi_workers=8"] for n in (1, 2)},
}
"""Arguments that are added to the case, by what is varied and its value."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="*", metavar="sweep", help=", ".join(SWEEPS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of steady state, at least")
    default = ROOT / "benchmarks" / "results" / "scaling.json"
    parser.add_argument("--json", type=Path, default=default)
    arguments = parser.parse_intermixed_args()
    if unknown := set(arguments.sweeps) - set(SWEEPS):
        parser.error(f"unknown sweep {min(unknown)}, expected some of {', '.join(SWEEPS)}")
    host = machine()
    table = Table("varied", "value", "steps/s", "update ms", "peak RSS MB of a process")
    rows: list[dict[str, Any]] = []
    for sweep in arguments.sweeps or SWEEPS:
        for value, overrides in SWEEPS[sweep].items():
            console.print(f"{sweep}={value}", highlight=False)
            options = [CASE, f"--seconds={arguments.seconds}", *overrides]
            result = measure(python("benchmarks.ours", *options))
            rows.append({"varied": sweep, "value": value, "overrides": overrides, **result})
            update = result.get("update_seconds")
            table.add_row(
                sweep,
                str(value),
                number(result.get("steps_per_second"), ",.0f"),
                number(update and 1000 * update, ",.1f"),
                number(result.get("peak_rss_mb"), ",.0f"),
            )
    report.print(table)
    write_json(arguments.json, {"machine": host, "case": CASE, "rows": rows})


if __name__ == "__main__":
    main()
