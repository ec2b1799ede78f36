"""Runs of a few iterations, as the command line leaves them behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ppo1_lightning import __main__ as command_line


def train_tiny(folder: Path, *words: str) -> Path:
    """Train into ``folder`` and return it."""
    usual = ["debug=default", "trainer.accelerator=cpu", "compile=false", f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ppo1-lightning", *usual, *words])
        command_line.main()
    return folder
