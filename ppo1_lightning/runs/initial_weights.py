"""A new run that starts from the weights of another."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ppo1_lightning.algorithms.entry import check_same_weights
from ppo1_lightning.algorithms.plain import read_checkpoint

log = logging.getLogger("ppo1_lightning")


class InitialWeights(Callback):
    """Loads policy and normalisers of a checkpoint when a fit starts; optimizer and counters not.

    To continue a run, counters and all, give `Trainer.fit` the checkpoint instead: where it has
    one, this callback does nothing.

    Args:
        path: a checkpoint of a run with the same policy.

    Raises:
        ConfigurationError: when the fit starts, the checkpoint cannot be read or does not fit.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load them."""
        if trainer.ckpt_path is not None:
            return
        saved = read_checkpoint(self.path, "init_from")["state_dict"]
        current = pl_module.state_dict()
        # Returns may be normalised in only one of the two runs: what is not shared stays as it is.
        shared = {n for n in saved.keys() & current.keys() if n.startswith("reward_normalizer.")}
        of_policy = ("policy.", "observation_normalizer.")
        wanted = shared | {name for name in (*saved, *current) if name.startswith(of_policy)}
        kept, own = ({n: s[n] for n in s if n in wanted} for s in (saved, current))
        check_same_weights({"state_dict": kept}, own)
        pl_module.load_state_dict({**current, **kept})
        log.info("starting from the weights of %s", self.path)
