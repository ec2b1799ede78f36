"""Lightning callbacks of a training run."""

from ppo1_lightning.callbacks.checkpoint import RunCheckpoint
from ppo1_lightning.callbacks.initial_weights import InitialWeights
from ppo1_lightning.callbacks.progress import Progress
from ppo1_lightning.callbacks.video import RecordVideo

__all__ = ["InitialWeights", "Progress", "RecordVideo", "RunCheckpoint"]
