"""The ranks of a job on this machine: processes of their own that are told the composed config.

Lightning's launcher would repeat the command line in every rank, and with ``-m`` that is the whole
sweep. Here the process that Hydra runs in starts all ranks and waits: it joins no process group, so
that nothing of a job is left in it, and no rank can take the other jobs of a sweep with it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from omegaconf import DictConfig, OmegaConf

from ppo1_lightning.errors import ConfigurationError

JOB_VARIABLE = "PPO1_LIGHTNING_JOB"
"""Environment variable with the file that tells a rank its job."""

GRACE_SECONDS = 25.0
"""What the other ranks have to end by themselves when one has failed."""

SAVING_SECONDS = 60.0
"""What a rank has to finish and save its iteration when its launcher is gone."""

_IS_RANK = JOB_VARIABLE in os.environ  # until `run_rank` takes it away

_Process = subprocess.Popen[bytes]


class RankError(RuntimeError):
    """A rank has failed.

    Attributes:
        status: exit status for the whole job. The message is empty where the rank has told why.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.message, self.status = message, status

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of(cls, rank: int, status: int) -> RankError:
        """Return the error of a process that ended with a status as `subprocess` has them."""
        if status > 0:
            return cls("", status)
        return cls(f"rank {rank} was ended by {signal.Signals(-status).name}", 128 - status)


def is_needed(trainer: Trainer) -> bool:
    """Tell whether processes have to be started for this trainer: torchrun, SLURM or `run_ranks`
    have not done so."""
    strategy = trainer.strategy
    return (
        isinstance(strategy, DDPStrategy)
        and isinstance(strategy.launcher, _SubprocessScriptLauncher)
        and not strategy.launcher.cluster_environment.creates_processes_externally
    )


def processes_started() -> int | None:
    """Return how many processes torchrun or SLURM has started for this run, None without them."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):  # as Lightning asks them
        if environment.detect():
            return environment().world_size()
    return None


def check_size(trainer: Trainer) -> None:
    """Compare the ranks that a trainer expects with those that torchrun or SLURM has started.

    Raises:
        ConfigurationError: their numbers differ.
    """
    started = processes_started()
    if started is not None and trainer.world_size != started:
        raise ConfigurationError(
            f"processes started: {started}, but trainer.devices={trainer.num_devices} on "
            f"trainer.num_nodes={trainer.num_nodes} make {trainer.world_size}; "
            "trainer=multi_node takes both from torchrun or SLURM"
        )


def run_ranks(config: DictConfig, trainer: Trainer) -> Any:
    """Run ``config`` on all ranks of this machine; return what the task returned on rank zero.

    SIGINT and SIGTERM are passed on; when the ranks have ended by them, so does this process.

    Args:
        config: of the job, as Hydra composed it.
        trainer: made from it, to tell how many ranks.

    Raises:
        RankError: one of them failed; the others have been ended.
    """
    with tempfile.TemporaryDirectory(prefix="ppo1_lightning-") as folder:
        file = Path(folder, "job.yaml")
        OmegaConf.save(OmegaConf.create(_job(config)), file)
        environment = os.environ | _rendezvous(trainer.num_nodes) | {JOB_VARIABLE: str(file)}
        environment["LOCAL_WORLD_SIZE"] = str(trainer.num_devices)  # as torchrun does
        ranks: list[_Process] = []
        try:
            with _signals_passed_on(ranks) as received:
                ranks.extend(
                    _start(environment | {"LOCAL_RANK": str(local_rank)})
                    for local_rank in range(trainer.num_devices)
                )
                failed = _wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()  # waits, and closes its stdin
        if received:  # ranks that were stopped end with 0, but for the first
            status = ranks[0].returncode or 128 + received[-1]
            sys.exit(status if status > 0 else 128 - status)
        if failed:
            raise RankError.of(*failed)
        result = _result_file(file)
        return json.loads(result.read_text()) if result.exists() else None


def is_rank() -> bool:
    """Tell whether this process is a rank that `run_ranks` has started."""
    return _IS_RANK


def run_rank(task: Callable[[DictConfig], Any]) -> None:
    """Do this rank's part of its job: ``task(config)``."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    file = Path(os.environ.pop(JOB_VARIABLE))  # not for commands that the task may run
    job = OmegaConf.load(file)
    if job.hydra is not None:
        configure_log(job.hydra.job_logging, job.hydra.verbose)
    result = task(job.config)
    if os.environ["LOCAL_RANK"] == "0":
        _result_file(file).write_text(json.dumps(result))


def _job(config: DictConfig) -> dict[str, Any]:
    """Return what a rank is told, resolved: times and Hydra's values are of this process."""
    hydra = None
    if HydraConfig.initialized():
        config_of_hydra = HydraConfig.get()
        logging = OmegaConf.to_container(config_of_hydra.job_logging, resolve=True)
        hydra = {"job_logging": logging, "verbose": config_of_hydra.verbose}
    return {"config": OmegaConf.to_container(config, resolve=True), "hydra": hydra}


def _result_file(job: Path) -> Path:
    return job.with_name("result.json")


def _rendezvous(num_nodes: int) -> dict[str, str]:
    """Return where the ranks meet: on several machines as the user has set it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    given = {name: os.environ[name] for name in own if name in os.environ}
    return own | given if num_nodes > 1 else own


def _start(environment: dict[str, str]) -> _Process:
    return subprocess.Popen(
        [sys.executable, "-m", "ppo1_lightning"],
        env=environment,
        stdin=subprocess.PIPE,  # it closes when this process ends, see `_end_with_launcher`
        start_new_session=True,  # a terminal's Ctrl-C comes from here, and only once
    )


def _end_with_launcher() -> None:
    """Stop this rank, after its iteration, when the process that started it is gone."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVING_SECONDS)
    os._exit(1)


def _wait(ranks: list[_Process]) -> tuple[int, int] | None:
    """Wait for all ranks, for long only while none has failed.

    Returns:
        Number and status of the first that failed, None for none.
    """
    failed, deadline = None, math.inf
    while True:
        states = [rank.poll() for rank in ranks]
        if failed is None:
            failed = next(((rank, state) for rank, state in enumerate(states) if state), None)
            deadline = math.inf if failed is None else time.monotonic() + GRACE_SECONDS
        if None not in states or time.monotonic() > deadline:
            return failed
        time.sleep(0.05)


@contextmanager
def _signals_passed_on(ranks: list[_Process]) -> Iterator[list[int]]:
    """Let the ranks finish their iteration and save; yield the signals that have come."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for rank in ranks:
            rank.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
