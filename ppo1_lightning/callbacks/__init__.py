"""Lightning callbacks of a training run."""

from ppo1_lightning.callbacks.checkpoint import RunCheckpoint
from ppo1_lightning.callbacks.progress import Progress

__all__ = ["Progress", "RunCheckpoint"]
