"""Run the systems of each case side by side and print the ratios.

``python -m benchmarks.run [case ...] [--systems ours sb3 ...] [--repeats 3] [--seconds 10]``

The beginning of cases' names stands for all of them: ``trpo`` for every case of TRPO.

Every measurement is a process of its own. Repeats are the outermost loop and systems the
innermost, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.cases import CASES, SYSTEMS_OF
from benchmarks.processes import ROOT, console, machine, measure, median, python, report, write_json

PEERS = ("sb3", "sbx", "rlox", "sheeprl", "cleanrl")
SYSTEMS = ("ours", "ours_bf16", "bare", *PEERS, "simulator", "rollout")
CROSS_RATIOS = [
    ("halfcheetah_8x256", "ours", "halfcheetah_1x2048", "sb3"),
    ("atari", "ours_bf16", "atari", "sb3"),
]
"""Ratios between cases that share their batch and its epochs, and between systems."""

Results = dict[str, dict[str, list[dict[str, Any]]]]
"""By case and system, one result a repeat."""


def command(system: str, case: str, seconds: float) -> list[str]:
    """Return the command that measures one system once."""
    module, *options = {
        "ours": ["benchmarks.ours"],
        "ours_bf16": ["benchmarks.ours", "trainer.precision=bf16-mixed"],
        "bare": ["benchmarks.ours", "--bare"],
        "simulator": ["benchmarks.simulator"],
        "rollout": ["benchmarks.simulator", "--policy"],
    }.get(system, [f"benchmarks.peers.{system}"])
    arguments = [case, f"--seconds={seconds}", *options]
    if system not in PEERS:
        return python(module, *arguments)
    return python(module, *arguments, interpreter=peer_python(system))


def peer_python(peer: str) -> Path:
    """Return the interpreter of a peer's virtual environment."""
    return ROOT / "benchmarks" / ".venvs" / peer / "bin" / "python"


def run(cases: list[str], systems: list[str], repeats: int, seconds: float) -> Results:
    """Measure everything ``repeats`` times, in turns."""
    results: Results = {case: {s: [] for s in systems_of(case, systems)} for case in cases}
    for repeat in range(repeats):
        for case, of_case in results.items():
            for system in of_case:
                console.print(f"{repeat + 1}/{repeats} {case} {system}", highlight=False)
                of_case[system].append(measure_once(system, case, seconds))
    return results


def systems_of(case: str, systems: list[str]) -> list[str]:
    """Return those of the systems that have the case's algorithm."""
    have_it = SYSTEMS_OF.get(case.partition("_")[0], systems)
    return [system for system in systems if system in have_it]


def cases_named(names: list[str]) -> list[str]:
    """Return the cases of these names, or that begin with them; all for no name.

    Raises:
        ValueError: there are none of a name.
    """
    for name in names:
        if not any(case.startswith(name) for case in CASES):
            raise ValueError(f"unknown case {name}, expected some of {', '.join(CASES)}")
    exact = [name for name in names if name in CASES]
    beginnings = tuple(name for name in names if name not in CASES)
    return [case for case in CASES if not names or case in exact or case.startswith(beginnings)]


def measure_once(system: str, case: str, seconds: float) -> dict[str, Any]:
    """Measure one system once, where it is installed."""
    if system in PEERS and not peer_python(system).exists():
        how = f"python -m benchmarks.setup_peers {system}"
        return {"unavailable": f"not installed: {how}"}
    return measure(command(system, case, seconds))


def ratio(
    ours: list[dict[str, Any]], others: list[dict[str, Any]]
) -> tuple[float, float, float] | None:
    """Return the ratio of median speeds, and the least and the largest ratio of one repeat."""
    mine, other = (median(results, "steps_per_second") for results in (ours, others))
    if mine is None or other is None:
        return None
    pairs = [
        a["steps_per_second"] / b["steps_per_second"]
        for a, b in zip(ours, others, strict=True)
        if "steps_per_second" in a and "steps_per_second" in b
    ]
    pairs = pairs or [mine / other]
    return mine / other, min(pairs), max(pairs)


def summarize(results: Results) -> list[dict[str, Any]]:
    """Return one row for each case and system."""
    return [
        {
            "case": case,
            "system": system,
            "ours_over_this": ratio(of_case["ours"], repeats) if "ours" in of_case else None,
            **{key: median(repeats, key) for key in FIGURES},
            "shares": mean_shares(repeats),
            "unavailable": next((r["unavailable"] for r in repeats if "unavailable" in r), None),
        }
        for case, of_case in results.items()
        for system, repeats in of_case.items()
    ]


FIGURES = ("steps_per_second", "startup_seconds", "compile_seconds", "peak_rss_mb")


def mean_shares(repeats: list[dict[str, Any]]) -> dict[str, float] | None:
    """Return how our wall time divides, averaged over repeats."""
    shares = [r["shares"] for r in repeats if "shares" in r]
    return {k: statistics.mean(s[k] for s in shares) for k in shares[0]} if shares else None


def cross_ratios(results: Results) -> dict[str, tuple[float, float, float] | None]:
    """Return the ratios between cases that were measured together."""
    return {
        f"{case} {system} / {other_case} {other}": ratio(
            results[case][system], results[other_case][other]
        )
        for case, system, other_case, other in CROSS_RATIOS
        if system in results.get(case, {}) and other in results.get(other_case, {})
    }


def show(rows: list[dict[str, Any]], crossed: dict[str, Any]) -> None:
    """Print the tables, ratios first."""
    table = Table("case", "system", "ours / this (min-max)", "steps/s", "startup s", "compile s")
    table.add_column("peak RSS MB")
    for row, before in zip(rows, [None, *rows], strict=False):
        if before is not None and row["case"] != before["case"]:
            table.add_section()
        figures = (
            number(row["steps_per_second"], ",.0f"),
            *(number(row[key], ".1f") for key in ("startup_seconds", "compile_seconds")),
            number(row["peak_rss_mb"], ",.0f"),
        )
        table.add_row(row["case"], row["system"], ratio_text(row["ours_over_this"]), *figures)
    report.print(table)
    for name, value in crossed.items():
        report.print(f"{name}: {ratio_text(value)}", highlight=False)
    for row in rows:
        if row["shares"]:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in row["shares"].items())
            report.print(f"{row['case']} {row['system']}, wall time: {shares}", highlight=False)
        if row["unavailable"]:
            report.print(f"[yellow]{row['case']} {row['system']}:[/] {row['unavailable']}")


def ratio_text(value: tuple[float, float, float] | None) -> str:
    return "-" if value is None else "{:.2f} ({:.2f}-{:.2f})".format(*value)


def number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steady state, at least")
    default = ROOT / "benchmarks" / "results" / "run.json"
    parser.add_argument("--json", type=Path, default=default)
    arguments = parser.parse_intermixed_args()
    try:
        cases = cases_named(arguments.cases)
    except ValueError as error:
        parser.error(str(error))
    host = machine()
    results = run(cases, arguments.systems, arguments.repeats, arguments.seconds)
    rows, crossed = summarize(results), cross_ratios(results)
    show(rows, crossed)
    content = {"machine": host, "summary": rows, "cross_ratios": crossed, "results": results}
    write_json(arguments.json, content)


if __name__ == "__main__":
    main()
