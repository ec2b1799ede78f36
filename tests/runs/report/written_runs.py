"""Folders of runs, written with the logger and the files of real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ppo1_lightning.runs.csv_logger import CSVLogger


def write_run(
    folder: Path,
    *,
    env: str = "CartPole-v1",
    seed: int = 1,
    clip_coef: float = 0.2,
    rows: int = 20,
    budget: int = 20,
    slope: float = 1.0,
    speed: float = 1000.0,
    columns: Mapping[str, Any] = {},
) -> Path:
    """Write a run of ``rows`` rows, each of 100 steps; the return grows by ``slope`` a row.

    ``budget`` is in rows; ``columns`` maps a row's number to more of its metrics.
    """
    config = {
        "env": {"id": env},
        "seed": seed,
        "total_steps": 100 * budget,
        "algo": {"clip_coef": clip_coef, "gamma": 0.99},
        "trainer": {"default_root_dir": str(folder)},
    }
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), hydra / "resolved.yaml")
    words = [f"env.id={env}", f"seed={seed}", f"algo.clip_coef={clip_coef}"]
    OmegaConf.save(OmegaConf.create(words), hydra / "overrides.yaml")
    choices = {"hydra": {"runtime": {"choices": {"algo": "classic", "debug": None}}}}
    OmegaConf.save(OmegaConf.create(choices), hydra / "hydra.yaml")
    logger = CSVLogger(folder)
    for row in range(1, rows + 1):
        metrics = {
            "env_steps": 100 * row,
            "iteration": row,
            "episode_return_mean": slope * row + seed if row > 1 else math.nan,
            "loss/surrogate": -0.01 / row,
            "loss/value": 1000.0 / row**2,
            "entropy": 1 - 0.01 * row,
            "kl": 0.01,
            "clip_fraction": 0.1,
            "explained_variance": min(0.9, 0.1 * row),
            "steps_per_second": speed,
        }
        logger.log_metrics(metrics | {k: f(row) for k, f in columns.items()}, step=100 * row)
    return folder


def write_sweep(folder: Path, *, seeds: int = 3, clips: tuple[float, ...] = (0.1, 0.2)) -> Path:
    """Write a sweep over clip ranges and seeds; a wider one learns faster."""
    for job, (clip, seed) in enumerate((c, s) for c in clips for s in range(1, seeds + 1)):
        write_run(folder / str(job), seed=seed, clip_coef=clip, slope=10 * clip)
    return folder
