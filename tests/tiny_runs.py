"""Runs of a few iterations, as the command line leaves them behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ppo1_lightning import __main__ as command_line

ANY_ID = {
    "atari": "Assault-v5",
    "atari_gymnasium": "ALE/Pong-v5",
    "mujoco": "Pusher-v4",
    "dm_control": "WalkerWalk-v1",
    "minigrid": "MiniGrid-DoorKey-5x5-v0",
    "procgen": "CoinrunEasy-v0",
    "toy_text": "FrozenLake-v1",
    "envpool": "LunarLanderContinuous-v3",
    "gymnasium": "CartPole-v1",
}
"""For each preset of ``conf/env`` that needs one."""


def train_tiny(folder: Path, *words: str) -> Path:
    """Train into ``folder`` and return it."""
    usual = ["debug=default", "trainer.accelerator=cpu", "compile=false", f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ppo1-lightning", *usual, *words])
        command_line.main()
    return folder
