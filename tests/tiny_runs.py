"""Runs of a few iterations, as the command line leaves them behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ppo1_lightning import train


def train_tiny(folder: Path, *words: str) -> Path:
    """Train into ``folder`` and return it."""
    usual = ["debug=default", "trainer.accelerator=cpu", "compile=false", f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ppo1-lightning", *usual, *words])
        train.main()
    return folder
