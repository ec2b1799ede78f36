"""Show a trained policy in a window: ``python -m ppo1_lightning play run=outputs/...``.

Closing the window, Escape, Q or Ctrl-C end it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Any

from omegaconf import DictConfig

from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands.train import few_threads
from ppo1_lightning.errors import ConfigurationError, check_flag, check_integer
from ppo1_lightning.runs import video
from ppo1_lightning.runs.load import load_run

log = logging.getLogger("ppo1_lightning")

_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")

_UNSEEN = ("dummy", "offscreen")
"""SDL's drivers without a display."""

HEIGHT = 480
"""Least height of the window's pictures, which are enlarged by whole factors."""


def main() -> None:
    """Run the command line."""
    cli.run(play, "play")


def play(config: DictConfig) -> None:
    """Play as ``config`` says (see ``conf/play.yaml``).

    Raises:
        ConfigurationError: there is no display, no such run, an environment that cannot be
            rendered, a value out of range, or the extra ``play`` is missing.
    """
    fps = check_integer("fps", config.fps, at_least=1)
    episodes = config.episodes
    if episodes is not None:
        episodes = check_integer("episodes", episodes, at_least=1)
    deterministic = check_flag("deterministic", config.deterministic)
    trained = load_run(config.run, config.ckpt_path, trust=check_flag("trust", config.trust))
    pygame = _open_display()
    try:
        module, environment = trained.module, trained.environment
        seed = module.seed if config.seed is None else config.seed
        frames = video.play(
            module, environment, episodes=episodes, deterministic=deterministic, seed=seed
        )
        with (
            few_threads(module.policy, speak=False),
            closing(frames),
            suppress(KeyboardInterrupt),
        ):
            _show(pygame, frames, environment.id, fps)
    finally:
        pygame.display.quit()


def _open_display() -> Any:
    """Return pygame with a display to open windows on."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise ConfigurationError(
            "a window needs the package pygame, expected the extra `play`: "
            "pip install 'ppo1-lightning[play]'"
        ) from error
    nowhere = ConfigurationError(
        "there is no display to open a window on; python -m ppo1_lightning record, with the same "
        "run=, writes a video instead"
    )
    if sys.platform == "linux" and not any(name in os.environ for name in _DISPLAYS):
        raise nowhere
    try:
        pygame.display.init()
    except pygame.error as error:
        raise nowhere from error
    # Where a display does not answer, SDL draws off screen, where nobody sees it.
    if pygame.display.get_driver() in _UNSEEN and "SDL_VIDEODRIVER" not in os.environ:
        pygame.display.quit()
        raise nowhere
    return pygame


def _show(pygame: Any, frames: Iterable[video.Frame], title: str, fps: int) -> None:
    """Show the frames until there are no more, or the window is closed."""
    window, clock = None, pygame.time.Clock()
    for frame in frames:
        height, width = frame.picture.shape[:2]
        if window is None:
            factor = -(-HEIGHT // height)
            window = pygame.display.set_mode((factor * width, factor * height), pygame.RESIZABLE)
        picture = pygame.surfarray.make_surface(frame.picture.swapaxes(0, 1))
        window.blit(pygame.transform.scale(picture, window.get_size()), (0, 0))
        pygame.display.set_caption(
            f"{title}: return {frame.episode_return:,.1f}, step {frame.step:,}"
        )
        pygame.display.flip()
        if frame.over:
            log.info("return %s in %s steps", f"{frame.episode_return:,.2f}", f"{frame.step:,}")
        if any(_is_end(pygame, event) for event in pygame.event.get()):
            return
        clock.tick(fps)


def _is_end(pygame: Any, event: Any) -> bool:
    keys = pygame.K_ESCAPE, pygame.K_q
    return event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key in keys)
