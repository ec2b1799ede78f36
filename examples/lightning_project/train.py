"""A Lightning project's own training script: its configs make model, data, callbacks and loggers.

python train.py
python train.py trainer=ddp model.logit_penalty=1e-3 data.total_steps=20_000
"""

from __future__ import annotations

import logging
import warnings

import hydra
import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float:
    """Train, test the best checkpoint, return its mean return."""
    # It is saved at the end of an iteration, after its optimizer steps, as it should be.
    warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
    lightning.seed_everything(config.seed)
    data = instantiate(config.data)
    model = instantiate(config.model)
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    loggers = [instantiate(logger) for logger in config.logger.values()]
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    trainer.fit(model, data)
    (scores,) = trainer.test(model, data, ckpt_path="best", weights_only=True, verbose=False)
    log.info("mean return of the best checkpoint: %.1f", scores["evaluation/return_mean"])
    return scores["evaluation/return_mean"]


if __name__ == "__main__":
    main()
