"""The file that a run's log goes to beside the terminal."""

from __future__ import annotations

import logging
import sys


class LogFile(logging.FileHandler):
    """A file of messages that a run can do without: where it cannot be written, it says so once.

    Python's own prints a traceback for each message.
    """

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(
                f"{self.baseFilename} cannot be written ({error.strerror}): messages are missing "
                "there",
                file=sys.stderr,
            )

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # what was left to be written has been told
            self.stream = None  # type: ignore[assignment]
