"""The report at the end of a sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ppo1_lightning.errors import RunError
from ppo1_lightning.runs.untrusted import printable

_folder: Path | None = None  # of the sweep that this process runs


class SweepReport(Callback):
    """Hydra callback that notes the folder of a sweep, for `write` at its end.

    Hydra tells of the end only where every job went well; `write` is called after any.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folder."""
        note(Path(config.hydra.sweep.dir))


def note(folder: Path) -> None:
    """Have `write` report on a folder."""
    global _folder
    _folder = folder


def write() -> None:
    """Write the report of the sweep, if one has ended, and say in one line where it is."""
    global _folder
    folder, _folder = _folder, None
    if folder is None or not folder.is_dir():
        return
    from ppo1_lightning.runs.report import make_report

    try:
        said = f"report of the sweep: {make_report([folder])}"
    except RunError as error:
        near = Path.cwd() in folder.absolute().parents
        command = f"python -m ppo1_lightning report {os.path.relpath(folder) if near else folder}"
        then = f", then {command}" if isinstance(error.__cause__, ImportError) else ""
        said = f"no report of the sweep: {error}{then}"
    print(printable(said), flush=True)
