"""Trains on Atari games for one update with ``compile=true``, as the command line does.

``python tests/atari_games.py [GAME ...]`` prints a table of these games, of all by default.
"""

from __future__ import annotations

import csv
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import envpool
from envpool.registration import registry

from ppo1_lightning import __main__ as command_line

TINY = [
    "debug=default",
    "total_iterations=1",
    "num_envs=4",
    "logger=csv",
    "trainer.accelerator=cpu",
]


class Trained(NamedTuple):
    game: str
    path: str  # "compiled"; else what went wrong
    seconds: float


def games() -> list[str]:
    """Return EnvPool's Atari games, such as "Pong"."""
    made_by = registry.specs
    return sorted(
        name.removesuffix("-v5")
        for name in envpool.list_all_envs()
        if made_by[name][0] == "envpool.atari"
    )


def train(game: str, folder: Path) -> Trained:
    """Train for one update; a run leaves its folder behind."""
    words = ["env=atari", f"env.id={game}-v5", "compile=true", *TINY, f"hydra.run.dir={folder}"]
    started = time.perf_counter()
    with patch.object(sys, "argv", ["ppo1-lightning", *words]):
        try:
            command_line.main()
            path = _path(folder)
        except (Exception, SystemExit) as error:
            path = f"{type(error).__name__}: {error}"
    return Trained(game, path, time.perf_counter() - started)


def _path(folder: Path) -> str:
    log = (folder / "train.log").read_text()
    with (folder / "csv" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    losses = [float(value) for name, value in row.items() if name.startswith("loss/")]
    if not (losses and all(map(math.isfinite, losses))):
        return f"losses are {losses}"
    return "compiled" if "update: compiled" in log else log


def train_all(names: Iterable[str]) -> Iterator[Trained]:
    """Train on one game after the other; those with as many actions share their graphs."""
    for game in names:
        with tempfile.TemporaryDirectory() as folder:
            yield train(game, Path(folder))


def main() -> int:
    failed = 0
    for trained in train_all(sys.argv[1:] or games()):
        print(f"{trained.game:24}{trained.seconds:8.1f} s  {trained.path}", flush=True)
        failed += trained.path != "compiled"
    print(f"{failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
