"""Lightning callbacks of a training run."""

from ppo1_lightning.callbacks.health import HealthCheck
from ppo1_lightning.callbacks.progress import Progress
from ppo1_lightning.callbacks.video import RecordVideo
from ppo1_lightning.runs.checkpoints import RunCheckpoint
from ppo1_lightning.runs.initial_weights import InitialWeights

__all__ = ["HealthCheck", "InitialWeights", "Progress", "RecordVideo", "RunCheckpoint"]
