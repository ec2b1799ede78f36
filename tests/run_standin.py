"""Run as a program by the tests that need processes of their own.

``DIR DEVICES BUDGET`` trains for BUDGET iterations with everything in DIR, progress on stdout.
Of two ranks each sees its own scores, and rank 1 alone gets a SIGTERM in the second iteration
and, after both were resumed, a SIGINT in the fourth.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from standin import StandIn, StandInData, trainer

from ppo1_lightning.callbacks import Progress, RunCheckpoint
from ppo1_lightning.runs.csv_logger import CSVLogger

SIGNALS = {1: signal.SIGTERM, 3: signal.SIGINT}


def signal_rank_one(iteration: int) -> None:
    if os.environ.get("LOCAL_RANK") == "1" and iteration in SIGNALS:
        os.kill(os.getpid(), SIGNALS[iteration])


def fit(folder: Path, devices: int, iterations: int, resume: Path | None = None) -> None:
    several: dict[str, Any] = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    run = trainer(
        RunCheckpoint(folder / "checkpoints", every_n_iterations=1),
        Progress(refresh_seconds=0),
        enable_progress_bar=True,
        logger=CSVLogger(folder),
        **several,
    )
    scores = [5.0, 1.0, 2.0, 3.0] if run.is_global_zero else [0.0, 9.0, 0.0]
    data = StandInData(iterations, known_length=False)
    run.fit(StandIn(scores, signal_rank_one), data, ckpt_path=resume)


def main(folder: Path, devices: int, iterations: int) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    try:
        fit(folder, devices, iterations)
    except SystemExit as end:
        print(f"terminated with {end.code}", flush=True)
        fit(folder, devices, iterations, folder / "checkpoints" / "last.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
