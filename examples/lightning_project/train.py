"""PPO in a Lightning project that has its own way with loggers, checkpoints and arguments.

python train.py [--steps 50_000] [--folder runs]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from agent import Agent
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from ppo1_lightning import MlpPolicy, RolloutDataModule


def main() -> None:
    """Train, then evaluate the best checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    seed_everything(1)  # of whatever else the project draws; the module and the data have their own
    data = RolloutDataModule(
        "CartPole-v1", num_envs=8, num_steps=128, total_steps=arguments.steps, seed=1
    )
    agent = Agent(MlpPolicy, minibatch_size=256, learning_rate=1e-3, seed=1)
    # It is saved at the end of an iteration, after its optimizer steps, as it should be.
    warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
    best = ModelCheckpoint(
        arguments.folder, monitor="episode_return_mean", mode="max", every_n_train_steps=2
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=CSVLogger(arguments.folder),
        log_every_n_steps=1,
        callbacks=[best, LearningRateMonitor()],
        enable_progress_bar=False,
    )
    trainer.fit(agent, data)
    trained = Agent.load_from_checkpoint(best.best_model_path)
    (scores,) = trainer.test(trained, data, verbose=False)
    print(f"mean return of {best.best_model_path}: {scores['evaluation/return_mean']:.1f}")


if __name__ == "__main__":
    main()
