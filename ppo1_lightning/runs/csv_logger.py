"""A CSV file of metrics that survives crashes and resumes."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ppo1_lightning.errors import StorageError

X_AXIS = "env_steps"


class CSVLogger(Logger):
    """Writes every row of metrics to ``save_dir/name/version/metrics.csv`` at once.

    Existing rows stay, and new ones are appended, except that a run which is continued from a
    checkpoint first cuts off the rows after it (``purge_step``): their iterations are done again.
    A row costs one short append; only a metric that is new to the file makes it be rewritten,
    once, with a new last column. Missing values are empty, NaN is ``nan``.

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
        self._columns: list[str] | None = None  # None until the file was looked at

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
    def root_dir(self) -> str:
        """Folder of this logger."""
        return os.path.join(self._save_dir, self._name)

    @property
    def log_dir(self) -> str:
        """Folder of the file."""
        return os.path.join(self.root_dir, self._version)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.log_dir) / "metrics.csv"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: numbers or tensors of one element, by column.
            step: environment steps so far, for the first column ``env_steps`` where ``metrics``
                does not hold it.
        """
        row = {X_AXIS: step} | {name: _plain(value) for name, value in metrics.items()}
        try:
            self._append(row)
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written ({error.strerror or error})"
            ) from error

    def _append(self, row: dict[str, Any]) -> None:
        if self._columns is None:
            self._columns = self._open()
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns = self._rewrite([*self._columns, *new])
        with self.path.open("a", newline="", encoding="utf-8") as file:
            _writer(file).writerow([row.get(name) for name in self._columns])

    @rank_zero_only
    def save(self) -> None:
        """Put the rows so far on the disk itself, out of reach of a power cut."""
        if self._columns is not None:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is saved with the run."""

    def _open(self) -> list[str]:
        """Create the folder, cut off a row that a crash left half written, return the columns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self.path, whole)
        with self.path.open(newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file), [])
        return self._rewrite(columns) if self._purge_step is not None and columns else columns

    def _is_kept(self, row: Mapping[str, str]) -> bool:
        step = row.get(X_AXIS)
        return self._purge_step is None or not step or float(step) < self._purge_step

    def _rewrite(self, columns: list[str]) -> list[str]:
        """Rewrite the file under this header and return its columns, the x axis first."""
        columns.sort(key=lambda name: name != X_AXIS)  # stable
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file, restval="") if self._is_kept(row)]
        self._purge_step = None  # done
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = _writer(file)
            writer.writerow(columns)
            writer.writerows([row.get(name, "") for name in columns] for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        return columns


def _plain(value: Any) -> Any:
    """Turn a tensor or array of one element into a number."""
    return value.item() if hasattr(value, "item") else value


def _writer(file: Any) -> Any:
    return csv.writer(file, lineterminator="\n")
