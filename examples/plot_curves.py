"""Plot the mean return of finished runs over environment steps.

    python examples/plot_curves.py OUTPUT.png RUN_DIR [RUN_DIR ...]

Needs the extra `plot` (matplotlib). Runs of the same environment share a colour.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter
from omegaconf import OmegaConf


def curve(run: Path) -> tuple[list[int], list[float]]:
    """Return environment steps and mean returns of a run's rows."""
    with (run / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return (
        [int(row["env_steps"]) for row in rows],
        [float(row["episode_return_mean"]) for row in rows],
    )


def main(output: str, *runs: str) -> None:
    """Write one picture of all runs."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    colours: dict[str, str] = {}
    for run in map(Path, runs):
        config = OmegaConf.load(run / ".hydra" / "resolved.yaml")
        env = config.env.id
        label = None if env in colours else env
        colour = colours.setdefault(env, f"C{len(colours)}")
        axes.plot(*curve(run), color=colour, linewidth=1.2, alpha=0.8, label=label)
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("return, mean of the last 100 episodes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
