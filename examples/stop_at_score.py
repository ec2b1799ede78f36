r"""A callback of one's own for the command line.

python -m ppo1_lightning env=cartpole \
  '+callbacks.stop={_target_: stop_at_score.StopAtScore, score: 200}'
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAtScore(Callback):
    """Ends the run when the mean return of the last 100 episodes reaches ``score``."""

    def __init__(self, score: float) -> None:
        self.score = score

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after every iteration: a batch is one."""
        if trainer.callback_metrics["episode_return_mean"] >= self.score:
            trainer.should_stop = True
