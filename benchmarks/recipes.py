"""The table of docs/recipes.md: ``python -m benchmarks.recipes SWEEP ZOO.jsonl``.

SWEEP is the folder of ``experiment=recipes``, ZOO.jsonl has what `benchmarks.peers.zoo` printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

COLUMNS = "command", "steps", "return", "minutes", "seeds", "SB3", "its minutes", "its seeds"

INTERVAL = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}
"""Student's t of 95 % by the number of seeds."""


class Run(NamedTuple):
    """What a run came to."""

    score: float
    seconds: float
    steps: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, metavar="SWEEP")
    parser.add_argument("zoo", type=Path, metavar="ZOO.jsonl")
    arguments = parser.parse_args()
    ours, peers = own_runs(arguments.sweep), peers_runs(arguments.zoo)
    rows: list[tuple[str, ...]] = [COLUMNS, ("---",) * len(COLUMNS)]
    for (word, env_id), runs in ours.items():
        theirs = peers.get((env_id, round(runs[0].steps, -5)), [])
        steps = f"{round(runs[0].steps, -3):,}"
        rows.append((f"`env={word}`", steps, *summary(runs), *summary(theirs)))
    print(*(f"| {' | '.join(row)} |" for row in rows), sep="\n")


def own_runs(sweep: Path) -> dict[tuple[str, str], list[Run]]:
    """Return the runs of a sweep by (word of ``env=``, id)."""
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    folders = sorted((f.parents[1] for f in sweep.glob("*/csv/metrics.csv")), key=_number)
    for folder in folders:
        with (folder / "csv" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        config: Any = OmegaConf.load(folder / ".hydra" / "resolved.yaml")
        words: Any = OmegaConf.load(folder / ".hydra" / "overrides.yaml")
        word = next(str(w).partition("=")[2] for w in words if str(w).startswith("env="))
        steps = int(float(rows[-1]["env_steps"]))
        speed = statistics.harmonic_mean([float(row["steps_per_second"]) for row in rows])
        run = Run(float(rows[-1]["episode_return_mean"]), steps / speed, steps)
        found[word, config.env.id].append(run)
    return found


def _number(folder: Path) -> int:
    return int(folder.name)


def peers_runs(file: Path) -> dict[tuple[str, int], list[Run]]:
    """Return what was printed by `benchmarks.peers.zoo`, by (id, steps)."""
    found: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for line in file.read_text().splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            run = Run(row["return"], row["seconds"], row["steps"])
            found[row["env"], row["steps"]].append(run)
    return found


def summary(runs: list[Run]) -> tuple[str, str, str]:
    """Return the mean with its interval, the minutes of one, and the single scores."""
    if not runs:
        return "not run", "", ""
    scores = [run.score for run in runs]
    minutes = statistics.fmean(run.seconds for run in runs) / 60
    text = _shown(statistics.fmean(scores))
    if len(scores) in INTERVAL:
        half = INTERVAL[len(scores)] * statistics.stdev(scores) / math.sqrt(len(scores))
        text = f"**{text}** ± {_shown(half)}"
    return text, f"{minutes:.1f}", ", ".join(map(_shown, scores))


def _shown(score: float) -> str:
    return f"{score:.1f}" if abs(score) >= 10 else f"{score:.2f}"


if __name__ == "__main__":
    main()
