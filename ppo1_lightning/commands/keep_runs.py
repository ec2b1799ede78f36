"""Folders that hold a run already are refused before Hydra writes there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.errors import ConfigurationError, RunError
from ppo1_lightning.runs import lock, resume
from ppo1_lightning.runs.untrusted import refuse_link_out, refuse_ways_out

_before: dict[Path, bytes] = {}
"""Hydra's files of the folder that this process goes on in, as they were."""


def put_back() -> None:
    """Put Hydra's files of a folder back as they were: what was asked for is refused."""
    for file, content in _before.items():
        with suppress(OSError):
            file.write_bytes(content)


class KeepRuns(Callback):
    """Hydra callback that refuses a folder before Hydra writes anything there."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit where the sweep's folder holds runs already, or every rank would run the sweep."""
        folder = Path(config.hydra.sweep.dir)
        if (launch.processes_started() or 1) > 1:
            _refuse("-m cannot run below torchrun or srun; start each job of the sweep with them")
        if any(word.startswith("run=") for word in config.hydra.overrides.task):
            _refuse(
                "run=DIR continues one run, and -m starts several; continue a sweep with "
                "resume=auto and the same hydra.sweep.dir"
            )
        if config.get("resume") is None and any(folder.glob("*/checkpoints/last.ckpt")):
            _refuse(
                f"hydra.sweep.dir={folder} holds runs already; continue them with resume=auto, "
                "or choose another folder"
            )
        try:
            for written in (folder, *_jobs(folder)):
                refuse_ways_out(written)
        except (RunError, OSError) as error:
            _refuse(cli.explain(error))

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit where the config cannot start here, or each rank would make its own folder."""
        template = str(OmegaConf.to_container(config.hydra.run)["dir"])  # type: ignore[index]
        started = launch.processes_started() or 1
        if started > 1 and "${now:" in template and config.get("run") is None:
            _refuse(
                f"{started} processes need the same folder, and the time names one for each: "
                "add an argument such as hydra.run.dir=outputs/run_1"
            )
        try:
            resume.check(config)
            run, folder = config.get("run"), Path(config.hydra.run.dir)
            if run is not None and folder.absolute() != Path(str(run)).absolute():
                raise ConfigurationError(
                    f"run={run} and hydra.run.dir={folder} are two folders, expected one of them"
                )
            resume.refuse_finished_run(folder, config)
            if cli.process_rank() == 0:
                refuse_ways_out(folder)
                with suppress(OSError):  # Hydra is about to say why not
                    folder.mkdir(parents=True, exist_ok=True)
                lock.hold(folder)
                files = folder.absolute().glob(".hydra/*.yaml")
                _before.update({file: file.read_bytes() for file in files if file.is_file()})
        except (RunError, OSError) as error:
            _refuse(cli.explain(error))
        except OmegaConfBaseException:
            pass  # the folder's name cannot be resolved: Hydra is about to say so


def _jobs(folder: Path) -> Iterator[Path]:
    """Yield the folders of a sweep's jobs, those that are links to others included.

    Raises:
        ConfigurationError: one is a link that leads out of the sweep's folder.
    """
    for place, folders, _ in os.walk(folder):
        for name in folders:
            if name.isdecimal() and Path(place, name).is_symlink():
                refuse_link_out(Path(place, name), folder)
        if {".hydra", "checkpoints"} & set(folders):
            yield Path(place)


def _refuse(message: str) -> NoReturn:
    """Exit with an error line from rank zero: Hydra would turn an exception into a warning."""
    if cli.process_rank() == 0:
        cli.report(message)
    sys.exit(cli.EXIT_STATUS)
