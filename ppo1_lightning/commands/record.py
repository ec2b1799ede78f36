"""Write a trained policy's episodes as videos: ``python -m ppo1_lightning record run=outputs/...``.

Videos are drawn by the simulator, as people would see the game, not as the policy does.
"""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands.train import few_threads
from ppo1_lightning.errors import check_flag, check_integer
from ppo1_lightning.runs import video
from ppo1_lightning.runs.load import load_run
from ppo1_lightning.runs.signals import unwound_by_sigterm

log = logging.getLogger("ppo1_lightning")

ENDINGS = ("mp4", "gif")


def main() -> None:
    """Run the command line."""
    cli.run(record, "record")


def record(config: DictConfig) -> float:
    """Record as ``config`` says (see ``conf/record.yaml``).

    Returns:
        The return of the last episode.

    Raises:
        ConfigurationError: no such run, an environment that cannot be rendered, a value out of
            range, the extra ``video`` is missing.
        StorageError: a file cannot be written.
    """
    options = {
        "episodes": check_integer("episodes", config.episodes, at_least=1),
        "fps": check_integer("fps", config.fps, at_least=1, at_most=video.MOST_FPS),
        "text": check_flag("text", config.text),
        "deterministic": check_flag("deterministic", config.deterministic),
    }
    if config.max_steps is not None:
        options["max_steps"] = check_integer("max_steps", config.max_steps, at_least=1)
    video.check_installed()
    trained = load_run(config.run, config.ckpt_path, trust=check_flag("trust", config.trust))
    stem = trained.output_stem(config.output, "videos", ENDINGS)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ENDINGS]
    seed = trained.module.seed if config.seed is None else config.seed
    with few_threads(trained.module.policy, speak=False), unwound_by_sigterm():
        ends = video.record(trained.module, trained.environment, *paths, seed=seed, **options)
    for end in ends:
        cut = "" if end.over else ", cut off by max_steps"
        log.info("return %s in %s steps%s", f"{end.episode_return:,.2f}", f"{end.step:,}", cut)
    for path in paths:
        log.info("%s", path)
    return ends[-1].episode_return
