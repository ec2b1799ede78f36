"""Videos of the policy while it learns."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from ppo1_lightning.errors import ConfigurationError, check_flag, check_integer
from ppo1_lightning.runs import video


class RecordVideo(Callback):
    """Records an episode about every ``every_steps`` environment steps, as MP4 and GIF.

    TensorBoard shows the GIF among its images. Training is as it would be without: the episode has
    an environment and a random stream of its own, and its time is not counted. Rank zero records,
    the others wait.

    Args:
        dirpath: folder of the videos, ``STEPS.mp4`` and ``STEPS.gif``.
        every_steps: environment steps between two videos, as near as whole iterations come.
        episodes, max_steps, deterministic, text, fps: see `video.record`.

    Raises:
        ConfigurationError: a value out of range or, when the run starts, an environment that
            cannot be rendered or the extra ``video`` missing.
        StorageError: while training, a video cannot be written.
    """

    def __init__(
        self,
        dirpath: str | Path,
        *,
        every_steps: int,
        episodes: int = 1,
        max_steps: int | None = 1000,
        deterministic: bool = False,
        text: bool = True,
        fps: int = 30,
    ) -> None:
        super().__init__()
        self.dirpath = Path(dirpath)
        self.every_steps = check_integer("every_steps", every_steps, at_least=1)
        self._options: dict[str, Any] = {
            "episodes": check_integer("episodes", episodes, at_least=1),
            "deterministic": check_flag("deterministic", deterministic),
            "text": check_flag("text", text),
            "fps": check_integer("fps", fps, at_least=1, at_most=video.MOST_FPS),
        }
        if max_steps is not None:
            self._options["max_steps"] = check_integer("max_steps", max_steps, at_least=1)
        self._recorded = 0  # multiples of every_steps that are done with

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw one picture, so that what cannot be recorded shows at once."""
        module = cast(Any, pl_module)
        self._recorded = module.counters.env_steps // self.every_steps
        if trainer.is_global_zero:
            video.check_installed()
            with closing(
                video.play(module, self._environment(trainer), seed=module.seed)
            ) as frames:
                next(frames)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record when it is time to."""
        module = cast(Any, pl_module)
        due = module.counters.env_steps // self.every_steps
        if due == self._recorded or cast(Any, trainer).fast_dev_run:
            return
        self._recorded = due
        with module.clock.paused():
            if trainer.is_global_zero:
                self._record(trainer, module)
            trainer.strategy.barrier()

    def _record(self, trainer: Trainer, module: Any) -> None:
        steps = module.counters.env_steps
        mp4, gif = (self.dirpath / f"{steps}.{kind}" for kind in ("mp4", "gif"))
        environment = self._environment(trainer)
        video.record(module, environment, mp4, gif, seed=module.seed, **self._options)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _show_in_tensorboard(logger, gif, steps)

    @staticmethod
    def _environment(trainer: Trainer) -> Any:
        env = getattr(cast(Any, trainer).datamodule, "env", None)
        if env is None:
            raise ConfigurationError(
                "RecordVideo does not know the environment: fit with a RolloutDataModule"
            )
        return env


def _show_in_tensorboard(logger: TensorBoardLogger, gif: Path, step: int) -> None:
    """Add a GIF as it is; TensorBoard's own `add_video` would encode pictures with MoviePy."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

    with Image.open(gif) as image:
        width, height = image.size
    picture = Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=gif.read_bytes()
    )
    summary = Summary(value=[Summary.Value(tag="video", image=picture)])
    logger.experiment._get_file_writer().add_summary(summary, step)
