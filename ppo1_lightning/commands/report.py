"""``python -m ppo1_lightning report outputs/...``: what a run, or a whole sweep, has learned."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ppo1_lightning.commands.process import refuse
from ppo1_lightning.errors import ConfigurationError, RunError, nearest
from ppo1_lightning.runs.report import make_report
from ppo1_lightning.runs.untrusted import printable

USAGE = """\
python -m ppo1_lightning report FOLDER [FOLDER ...] [format=html|png|svg|pdf] [output=FILE]

One page of all runs in the folders: learning curves, final scores, losses, configuration, videos.
format=png, svg or pdf draws the learning curves alone, for a paper.
output is report.html (.png, ...) in the folder, or in the folder that all of them are in.
"""


def main() -> None:
    """Run the command line."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(USAGE, end="")
        return
    try:
        folders, options = parse(words)
        path = make_report(folders, **options)
    except (RunError, OSError) as error:
        from ppo1_lightning.commands.config import explain

        refuse(explain(error))
    print(printable(str(path)))


def parse(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Split a command line into folders and options.

    Raises:
        ConfigurationError: an option that there is none of, or no folder.
    """
    folders: list[Path] = []
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        # A sweep's folder may be called seed=1; `Path` would have an error for a long name.
        if not equals or os.path.isdir(word):
            folders.append(Path(word))
        elif key not in ("format", "output"):
            raise ConfigurationError(
                f"{word} is neither a folder nor an option, expected format=... or output=..."
                f"{nearest(key, ('format', 'output'))}"
            )
        else:
            options[key] = value
    if not folders:
        raise ConfigurationError("there is no folder to report on, expected that of a run or sweep")
    return folders, options
