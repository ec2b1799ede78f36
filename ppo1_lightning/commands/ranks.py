"""The ranks of a job on this machine: processes of their own that are told the composed config.

Lightning's launcher would repeat the command line in every rank, and with ``-m`` that is the whole
sweep. PyTorch's agent starts them from the process that Hydra runs in, which joins no process
group: nothing of a job is left in it, and no rank can take the other jobs of a sweep with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # pyright: ignore

from ppo1_lightning import system
from ppo1_lightning.commands.process import outlive_readers
from ppo1_lightning.commands.stopped_ranks import stopped_ranks_ended
from ppo1_lightning.errors import ConfigurationError

_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds that ranks have to finish and save their iteration when they are to stop."""

LOOPBACK = "127.0.0.1"


class RankError(RuntimeError):
    """A rank has failed.

    Attributes:
        status: exit status for the whole job. The message is empty where the rank has told why.
    """

    def __init__(self, rank: int, failure: ProcessFailure) -> None:
        killed = failure.exitcode < 0
        super().__init__(f"rank {rank} was ended by {failure.signal_name()}" if killed else "")
        self.status = 128 - failure.exitcode if killed else failure.exitcode


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
        ConfigurationError: their numbers differ, or several machines have neither.
    """
    if is_needed(trainer) and trainer.num_nodes > 1:
        raise ConfigurationError(
            f"trainer.num_nodes={trainer.num_nodes} needs torchrun or srun to start the processes "
            "(docs/scaling.md)"
        )
    started = processes_started()
    if started is not None and trainer.world_size != started:
        raise ConfigurationError(
            f"processes started: {started}, but trainer.devices={trainer.num_devices} on "
            f"trainer.num_nodes={trainer.num_nodes} make {trainer.world_size}; "
            "trainer=multi_node takes both from torchrun or SLURM"
        )


def run_ranks(task: Callable[[DictConfig], Any], config: DictConfig, devices: int) -> Any:
    """Run ``task(config)`` in ``devices`` processes; return what it returned on rank zero.

    SIGINT and SIGTERM are passed on; when the ranks have ended by them, so does this process.

    Args:
        task: importable; it tells its errors and ends its process with their exit status.
        config: of the job, as Hydra composed it.
        devices: number of ranks.

    Raises:
        RankError: one of them failed; the others have been ended.
    """
    os.environ.setdefault(_TIMEOUT, "600")  # PyTorch's own default is 30
    known = multiprocessing.get_all_start_methods()
    if multiprocessing.get_start_method() not in known:  # joblib's, which Python tells the ranks
        multiprocessing.set_start_method(known[0], force=True)
    resolved = OmegaConf.to_container(config, resolve=True)  # times are of this process
    handlers = {number: signal.getsignal(number) for number in system.STOPS}
    try:
        with _loopback_only() as meeting_point, stopped_ranks_ended(devices):
            launch = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=devices,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint=meeting_point,
                rdzv_configs={"store_type": "file"},
                local_addr=LOOPBACK,
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(os.devnull),  # no files: each rank tells its errors
            )
            rest = _job_logging(), system.start_up.began
            return elastic_launch(launch, _run_rank)(task, resolved, *rest)[0]
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        raise RankError(*error.get_first_failure()) from None
    finally:  # PyTorch leaves its own
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def _loopback_only() -> Iterator[str]:
    """Let PyTorch's agent listen where no other machine can reach it; give a file to meet by.

    Its own servers listen on all addresses, whatever they are told.
    """

    def serve(handler: Any, address: str, port: int) -> TCPStore:
        listener = socket.create_server((address, port))
        port, number = listener.getsockname()[1], listener.detach()
        return TCPStore(address, port, is_master=True, master_listen_fd=number)

    with (
        tempfile.TemporaryDirectory(prefix="ppo1_lightning_") as folder,
        patch.object(DynamicRendezvousHandler, "_create_tcp_store_server", serve),
    ):
        yield os.path.join(folder, "meeting_point")


def _job_logging() -> tuple[Any, Any] | None:
    """Return the arguments for Hydra's ``configure_log``, None without Hydra."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    return OmegaConf.to_container(hydra.job_logging, resolve=True), hydra.verbose


def _run_rank(
    task: Callable[[DictConfig], Any],
    config: Any,
    logs: tuple[Any, Any] | None,
    began: float | None,
) -> Any:
    """Do this rank's part of its job. It is sent SIGTERM when the launcher has died.

    PyTorch would send SIGINT, once for each thread of the launcher, and two of them stop at once.
    """
    if began is not None:
        system.start_up.begin(began)  # with the command
    _prctl_pr_set_pdeathsig(signal.SIGTERM)  # does nothing but on Linux
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    system.leave_terminal()  # a terminal's Ctrl-C comes from the launcher, and only once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored after `nohup ... &`
    signal.signal(signal.SIGTERM, _end)
    if system.HANG_UP is not None:
        signal.signal(system.HANG_UP, lambda *_: signal.raise_signal(signal.SIGTERM))
    cast(Any, rank_zero_only).rank = int(os.environ["RANK"])  # Lightning has looked before it was
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    if logs is not None:
        configure_log(DictConfig(logs[0]), logs[1])
    try:
        with outlive_readers():
            return task(DictConfig(config))
    except SystemExit as end:  # PyTorch would take status 0 for a result, and wait for the others
        sys.exit(end.code or 128 + signal.SIGTERM)


def _end_with_launcher() -> None:
    """End this rank where SIGTERM could not: it waits in a collective, say."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    time.sleep(float(os.environ[_TIMEOUT]))
    os._exit(1)


def _end(number: int, frame: FrameType | None) -> None:
    """End this rank, unless an error does so already: another rank's end must not hush it."""
    if sys.exc_info()[1] is None:
        sys.exit(128 + number)
