"""Pictures on which rounding could decide what a ReLU does, and the first frames of six games.

``python tests/fast/pictures.py`` records the frames again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GAMES = ("Breakout", "Pong", "MsPacman", "Seaquest", "MontezumaRevenge", "Skiing")
FILE = Path(__file__).with_name("first_frames.npz")
COUNT = 16


def pictures() -> dict[str, Tensor]:
    """Return ``COUNT`` pictures of each kind, ``[COUNT, 4, 84, 84]`` uint8."""
    with np.load(FILE) as recorded:
        games = {name: torch.from_numpy(recorded[name]) for name in GAMES}
    colours = (0, 1, 87, 236, 255)
    plain = {f"all {colour}": _all_of(colour) for colour in colours}
    return plain | {"every colour": _colours(), "lines": _lines(), "dots": _dots()} | games


def _all_of(colour: int) -> Tensor:
    return torch.full((COUNT, 4, 84, 84), colour, dtype=torch.uint8)


def _colours() -> Tensor:
    """One colour a picture, and the last ones half of another."""
    made = torch.linspace(0, 255, COUNT).to(torch.uint8)[:, None, None, None].repeat(1, 4, 84, 84)
    made[COUNT // 2 :, :, :, 41:] = 0
    return made


def _lines() -> Tensor:
    """One pixel wide, across, down and aslant, in one channel or all, on black."""
    made = _all_of(0)
    places = torch.arange(84)
    for i, picture in enumerate(made):
        channels = picture if i % 2 else picture[i % 4 : i % 4 + 1]
        at = (0, 3, 4, 30, 41, 58, 80, 83)[i // 2]
        if i % 3 == 0:
            channels[:, at] = 255
        elif i % 3 == 1:
            channels[:, :, at] = 90
        else:
            channels[:, places, (places + at) % 84] = 200
    return made


def _dots() -> Tensor:
    """Some pixels on black, fewer from picture to picture."""
    random = torch.rand(COUNT, 4, 84, 84, generator=torch.Generator().manual_seed(0))
    share = 0.3 * 2.0 ** -torch.arange(COUNT)[:, None, None, None]
    return ((random < share) * 255).to(torch.uint8)


def record() -> None:
    """Record the games as they are trained on (``conf/env/atari.yaml``), by random actions."""
    import envpool

    frames = {}
    for game in GAMES:
        envs = envpool.make_gymnasium(
            f"{game}-v5",
            num_envs=2,
            seed=0,
            stack_num=4,
            frame_skip=4,
            noop_max=30,
            use_fire_reset=True,
            episodic_life=True,
            reward_clip=True,
        )
        random = np.random.default_rng(0)
        seen = [envs.reset()[0]]
        while len(seen) < COUNT // 2:
            seen.append(envs.step(random.integers(envs.action_space.n, size=2))[0])
        frames[game] = np.concatenate(seen)
    np.savez_compressed(FILE, **frames)


if __name__ == "__main__":
    record()
