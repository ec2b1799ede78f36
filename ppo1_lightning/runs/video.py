"""Whole episodes as pictures, and pictures as MP4 and GIF files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ppo1_lightning import simulators
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.rollouts.evaluation import Player
from ppo1_lightning.rollouts.seeding import chosen_seed, environment_seeds, generator
from ppo1_lightning.runs.files import replacing
from ppo1_lightning.simulators.base import EnvironmentSpec

Picture = NDArray[np.uint8]

MOST_FPS = 1000
"""Most frames a second that may be asked for."""

GIF_FPS = 25
"""Most frames a second in a GIF, of which the others are left out: it is not compressed much."""

_H264 = ["-crf", "18", "-preset", "fast"]
# one palette for the whole GIF, fitted to its colours
_PALETTE = "split[a][b];[a]palettegen=stats_mode=diff[p];[b][p]paletteuse=dither=none"


class Frame(NamedTuple):
    """One moment of an episode."""

    picture: Picture  # [H, W, 3], as the simulator draws it
    episode: int  # from 0
    step: int  # transitions of the episode so far
    episode_return: float  # of unscaled and unclipped rewards so far
    over: bool  # the episode's last


def play(
    player: Player,
    env: EnvironmentSpec,
    *,
    episodes: int | None = 1,
    deterministic: bool = False,
    seed: int = 0,
) -> Generator[Frame]:
    """Yield every frame of whole episodes (games) on one environment, for ever with None.

    The environment is the first one of an evaluation with the same seed; close the generator to
    free it early.

    Raises:
        ConfigurationError: the environment cannot be rendered, or the seed is out of range.
        SimulationError: a reward or an observation is not finite.
    """
    seeds = environment_seeds(chosen_seed(seed), 1, purpose="evaluation")
    simulator = simulators.make_simulator(
        replace(env, num_pools=1), seeds, render=True, wrapper_states=player.wrapper_states[:1]
    )
    act = player.act_greedily if deterministic else player.act
    try:
        observation = simulator.reset()
        state, starts = player.initial_state(1), torch.ones(1, dtype=torch.bool)
        episode, step, total, draws, over = 0, 0, 0.0, 0, False
        yield Frame(simulator.render(), 0, 0, 0.0, False)
        while episode != episodes:
            noise = player.distribution.noise(1, generator=generator(seed, "video actions", draws))
            draws += 1
            memory = (state, starts) if state.shape[-1] else ()
            chosen = act(torch.from_numpy(observation), noise, *memory)
            state = chosen.state if memory else state
            step_taken = simulator.step(chosen[0].cpu().numpy())
            observation, _, _, _, (valid,), (reward,), (over,) = step_taken
            starts = torch.from_numpy(~step_taken.valid)
            if valid or step == 0:  # else a life was lost, and the game goes on
                step, total = step + int(valid), total + float(reward)
                yield Frame(simulator.render(), episode, step, total, bool(over))
            if over:
                episode, step, total = episode + 1, 0, 0.0
    finally:
        simulator.close()


def with_text(frame: Frame) -> Picture:
    """Return the picture with return and step written onto it."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(frame.picture)
    size = max(10, image.height // 24)
    text = f"return {frame.episode_return:,.1f}  step {frame.step:,}"
    ImageDraw.Draw(image).text(
        (size // 3, image.height - size // 4),  # scores tend to be at the top
        text,
        anchor="ld",
        fill="white",
        font=ImageFont.load_default(size),
        stroke_width=max(1, size // 12),
        stroke_fill="black",
    )
    return np.asarray(image)


def write_videos(pictures: Iterable[Picture], *paths: Path, fps: int = 30) -> None:
    """Write pictures ``[H, W, 3]``, all of one size, to files that end in .mp4 or .gif.

    They are encoded as they come, and a file appears when it is whole.

    Raises:
        ConfigurationError: the extra ``video`` is not installed.
        StorageError: a file cannot be written.
    """
    check_installed()
    padded = (_even(picture) for picture in pictures)
    if (first := next(padded, None)) is None:
        return
    with ExitStack() as files:
        adds = [files.enter_context(_encoder(path, first.shape, fps)) for path in paths]
        for picture in chain([first], padded):
            for add in adds:
                add(picture)


@contextmanager
def _encoder(path: Path, shape: tuple[int, ...], fps: int) -> Iterator[Callable[[Picture], Any]]:
    """Give what adds a picture to a file; its process is FFmpeg's."""
    import imageio_ffmpeg

    codec: dict[str, Any] = {"codec": "libx264", "output_params": _H264}
    if path.suffix == ".gif":
        filters = f"framestep={-(-fps // GIF_FPS)},{_PALETTE}"
        codec = {"codec": "gif", "pix_fmt_out": "pal8", "output_params": ["-lavfi", filters]}
    with replacing(path, make_folder=True) as new:
        new.write_bytes(b"")  # tells why it cannot be: FFmpeg's pipe only breaks
        frames = imageio_ffmpeg.write_frames(
            str(new),
            shape[1::-1],
            fps=fps,
            macro_block_size=1,
            ffmpeg_log_level="error",
            **codec,
        )
        with closing(frames):
            frames.send(None)  # starts the process
            yield frames.send
        if not new.stat().st_size:
            raise OSError("nothing was written")


def _even(picture: Picture) -> Picture:
    """Repeat the last row and column where their number is odd: H.264 halves both for colours."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")


def check_installed() -> None:
    """Raise `ConfigurationError` where the extra ``video`` is missing."""
    try:
        import imageio_ffmpeg  # noqa: F401
        from PIL import Image  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"videos need the package {error.name}, expected the extra `video`: "
            "pip install 'ppo1-lightning[video]'"
        ) from error


def record(
    player: Player,
    env: EnvironmentSpec,
    *paths: Path,
    episodes: int = 1,
    max_steps: int | None = None,
    deterministic: bool = False,
    text: bool = False,
    fps: int = 30,
    seed: int = 0,
) -> list[Frame]:
    """Write whole episodes as videos.

    Args:
        paths: of the files, each ending in .mp4 or .gif.
        max_steps: most steps of all episodes together, after which the video ends.
        text: whether return and step are written onto the pictures.

    Returns:
        The last frame of each episode, the last of them perhaps cut off by ``max_steps``.

    Raises:
        ConfigurationError: the environment cannot be rendered, or the extra ``video`` is missing.
        SimulationError: a reward or an observation is not finite.
        StorageError: a file cannot be written.
    """
    check_installed()
    frames = play(player, env, episodes=episodes, deterministic=deterministic, seed=seed)
    last: dict[int, Frame] = {}

    def pictures() -> Iterator[Picture]:
        for frame in frames:
            last[frame.episode] = frame
            yield with_text(frame) if text else frame.picture
            if sum(end.step for end in last.values()) == max_steps:
                break

    with closing(frames):
        write_videos(pictures(), *paths, fps=fps)
    return list(last.values())
