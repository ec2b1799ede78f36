"""What was asked for and has no effect: told in a line each, never ignored silently."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning import simulators
from ppo1_lightning.errors import nearest

log = logging.getLogger("ppo1_lightning")


def without_effect(words: Sequence[str], config: DictConfig) -> Iterator[str]:
    """Yield a line for each override of a command line that changes nothing in its config.

    Args:
        words: ``key=value``, as typed.
        config: what they were composed to, with everything else.
    """
    idle = dict(_idle(config))
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        for prefix, reason in idle.items():
            if key == prefix or key.startswith(f"{prefix}."):
                yield f"{word} has no effect: {reason}"


def _idle(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield keys that nothing reads, and why."""
    if OmegaConf.select(config, "evaluation.every_steps") is None:
        for name in ("episodes", "num_envs", "deterministic"):
            yield f"evaluation.{name}", "there is no evaluation without evaluation.every_steps"
    if "${frame_stack}" not in OmegaConf.to_yaml(config):
        yield "frame_stack", "only Atari's presets read it"
    backend, env_id = config.env.get("backend"), str(config.env.id)
    if backend == "gymnasium" or not simulators.is_envpool_s(env_id):
        for name in ("num_threads", "pin_threads"):
            yield f"env.{name}", "Gymnasium has no threads, it is EnvPool's"
    for name, switch in (("checkpoint", "checkpointing"), ("progress", "progress_bar")):
        if OmegaConf.select(config, f"trainer.enable_{switch}") is False:
            yield f"callbacks.{name}", f"trainer.enable_{switch}=false leaves it out"


class UnknownMetrics(Callback):
    """Warns of names of metrics that the first row does not have.

    Only a warning: something of the user's own may log them later.

    Args:
        names: by the key that says them.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Look at the first row."""
        known = {*pl_module.metrics, *trainer.callback_metrics}
        if "env_steps" not in known:
            return
        for key, name in self._names.items():
            if name not in known and not name.startswith("evaluation/"):
                log.warning("%s=%s is not logged%s", key, name, nearest(name, known))
        self._names.clear()
