"""Mean return at some numbers of steps: ``python -m benchmarks.marks FILE.csv... --at 0.5 1 2``.

FILE.csv has the rows of a run, as in docs/benchmarks. At a mark stands the last row up to it, so
that no number is of more steps than its column says.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


def returns_at(file: Path, marks: list[float]) -> list[float]:
    """Return the mean return at each mark, in millions of steps; NaN beyond the end."""
    with file.open() as lines:
        rows = [
            (float(row["env_steps"]), row["episode_return_mean"]) for row in csv.DictReader(lines)
        ]
    at = [[value for steps, value in rows if steps <= mark * 1e6] for mark in marks]
    last = 1.02 * rows[-1][0] if rows else 0.0  # a run's last row may be just short of a mark
    return [
        float(values[-1]) if values and mark * 1e6 <= last else float("nan")
        for values, mark in zip(at, marks, strict=True)
    ]


def main() -> None:
    """Print a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv")
    parser.add_argument("--at", nargs="+", type=float, required=True, help="millions of steps")
    arguments = parser.parse_args()
    for file in arguments.files:
        values = " | ".join(f"{value:.1f}" for value in returns_at(file, arguments.at))
        print(f"| {file.stem} | {values} |")


if __name__ == "__main__":
    main()
