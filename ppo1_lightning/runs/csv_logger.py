"""A CSV file of metrics that survives crashes and resumes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ppo1_lightning.errors import StorageError
from ppo1_lightning.runs.files import replacing, sync

X_AXIS = "env_steps"


class CSVLogger(Logger):
    """Writes every row of metrics to ``save_dir/name/version/metrics.csv`` at once.

    Existing rows stay, and new ones are appended, except that a run which is continued from a
    checkpoint first cuts off the rows after it (``purge_step``): their iterations are done again.
    A row costs one short append; only the first one, and a metric that is new to the file (the
    first evaluation's), make it be rewritten, the metric as the last column. Missing values are
    empty, NaN is ``nan``.

    Args:
        save_dir: folder of the run.
        name: folder of this logger in it.
        version: folder in that one; by default none.
        purge_step: rows from these environment steps on are cut off before the first new one, as
            TensorBoard's argument of this name hides them.

    Raises:
        StorageError: a row cannot be written.
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str = "csv",
        version: str = "",
        purge_step: int | None = None,
    ) -> None:
        super().__init__()
        self._purge_step = purge_step
        self._save_dir, self._name, self._version = os.fspath(save_dir), name, version
        self._columns: list[str] = []  # none until the first row

    @property
    def name(self) -> str:
        """Folder of this logger in the run's."""
        return self._name

    @property
    def version(self) -> str:
        """Folder in that one, ``""`` for none."""
        return self._version

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return self._save_dir

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._save_dir, self._name, self._version, "metrics.csv")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: numbers or tensors of one element, by column.
            step: environment steps so far, for the first column ``env_steps`` where ``metrics``
                does not hold it.
        """
        row = {X_AXIS: step} | {name: _plain(value) for name, value in metrics.items()}
        with self._told():
            if not row.keys() <= set(self._columns):
                self._columns = self._rewrite(row)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                _writer(file).writerow([row.get(name) for name in self._columns])

    @rank_zero_only
    def save(self) -> None:
        """Put the rows so far on the disk itself, out of reach of a power cut."""
        if self._columns:
            with self._told():
                sync(self.path)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is saved with the run."""

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written ({error.strerror or error})"
            ) from error

    def _rewrite(self, new: Iterable[str]) -> list[str]:
        """Replace the file by one with ``new`` columns too, and return all; the x axis is first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text("utf-8", "replace") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a crash may have left half a row
        reader = csv.DictReader(io.StringIO(whole), restval="")
        columns = list(dict.fromkeys([X_AXIS, *(reader.fieldnames or ()), *new]))
        rows = [[row.get(name, "") for name in columns] for row in reader if self._is_kept(row)]
        self._purge_step = None  # done
        with (
            replacing(self.path) as whole_file,
            whole_file.open("w", newline="", encoding="utf-8") as file,
        ):
            _writer(file).writerows([columns, *rows])
        return columns

    def _is_kept(self, row: Mapping[str, str]) -> bool:
        step = row.get(X_AXIS)
        return self._purge_step is None or not step or float(step) < self._purge_step


def _plain(value: Any) -> Any:
    """Turn a tensor or array of one element into a number."""
    return value.item() if hasattr(value, "item") else value


def _writer(file: Any) -> Any:
    return csv.writer(file, lineterminator="\n")
