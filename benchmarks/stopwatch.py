"""A Lightning callback that measures a run from inside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from benchmarks.measure import WARMUP, Measurement


class Timed:
    """A clock for the calls of functions."""

    def __init__(self) -> None:
        self.first = self.total = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function under this clock."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - started
                self.first = self.first or seconds
                self.total += seconds

        return timed

    @classmethod
    def method(cls, owner: Any, name: str) -> Timed:
        """Put a method of one object under a clock."""
        clock = cls()
        setattr(owner, name, clock.wrap(getattr(owner, name)))
        return clock

    @classmethod
    def inference(cls, module: Any, begin: Callable[[], None]) -> Timed:
        """Put what `PPO.acting` returns under a clock, and tell when it is first asked for."""
        clock, acting = cls(), module.acting

        def timed_acting(*args: Any) -> Any:
            begin()
            made = acting(*args)
            # Not set on it: in a cycle, its memory would wait for the garbage collector.
            return SimpleNamespace(act=clock.wrap(made.act), outputs=clock.wrap(made.outputs))

        module.acting = timed_acting
        return clock


class Stopwatch(Callback):
    """Stops the run when enough is measured and writes the result as JSON.

    Shares of the wall time: ``simulator`` and ``inference`` are the calls of a rollout's loop,
    ``collection`` is the rest of it; ``advantages`` is all that comes before the minibatches,
    ``update`` their steps, ``evaluation`` that of the new policy; ``logging`` the loggers;
    ``lightning`` is what is left: the Trainer's loop, callbacks, checkpoints.

    Args:
        file: to write.
        seconds: of steady state, at least.
    """

    def __init__(self, file: str, seconds: float, warmup: int = WARMUP) -> None:
        self._file = Path(file)
        self._measurement = Measurement(seconds, warmup)
        self._clocks: dict[str, list[Timed]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put what is to be timed under clocks."""
        self._clocks = {
            "inference": [Timed.inference(pl_module, self._measurement.begin)],
            "rollout": [Timed.method(trainer.train_dataloader, "collect")],
            "transfer": [Timed.method(pl_module, "transfer_batch_to_device")],
            "training_step": [Timed.method(pl_module, "training_step")],
            "advantages": [Timed.method(pl_module, "begin")],
            "update": [
                Timed.method(pl_module, name)
                for name in ("update", "improve_policy")
                if hasattr(pl_module, name)
            ],
            "evaluation": [Timed.method(pl_module, "measure")],
            "logging": [Timed.method(logger, "log_metrics") for logger in trainer.loggers],
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the end of an iteration."""
        counters: Any = pl_module.counters
        if "simulator" not in self._clocks:  # it is made with the first rollout
            collector: Any = getattr(trainer.train_dataloader, "_collector")  # noqa: B009
            self._clocks["simulator"] = [
                Timed.method(collector.simulator, name) for name in ("send", "receive")
            ]
        enough = self._measurement.tick(counters.env_steps)
        if self._measurement.measured == 0:
            for clock in chain(*self._clocks.values()):
                clock.total = 0.0
        if trainer.world_size > 1:
            enough = trainer.strategy.broadcast(enough)  # rank zero's clock decides for all
        if enough:
            trainer.should_stop = True
            if trainer.is_global_zero:
                self._write(pl_module)

    def _write(self, module: LightningModule) -> None:
        seconds = {name: sum(c.total for c in clocks) for name, clocks in self._clocks.items()}
        iterations, wall = self._measurement.measured, self._measurement.elapsed
        parts = ("simulator", "inference", "transfer", "advantages", "update", "evaluation")
        shares = {name: seconds[name] for name in (*parts, "logging")}
        shares["collection"] = seconds["rollout"] - seconds["simulator"] - seconds["inference"]
        known = seconds["rollout"] + seconds["transfer"] + seconds["training_step"]
        shares["lightning"] = wall - known
        shares["rest of the step"] = wall - sum(shares.values())
        first = self._clocks["training_step"][0].first
        result = self._measurement.result(
            # What the first iteration took more than the others: compiling, or its cache.
            compile_seconds=first - seconds["training_step"] / iterations,
            update_seconds=seconds["update"] / iterations,
            shares={name: part / wall for name, part in shares.items()},
            parameters=sum(p.numel() for p in module.parameters()),
            torch_threads=torch.get_num_threads(),
            versions={"torch": torch.__version__},
        )
        self._file.write_text(json.dumps(result), encoding="utf-8")
