"""``python -m ppo1_lightning report outputs/...``: what a run, or a whole sweep, has learned."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ppo1_lightning.errors import ConfigurationError, check_choice, nearest
from ppo1_lightning.runs.report.runs import find_runs

FORMATS = ("html", "png", "svg", "pdf")

USAGE = """\
python -m ppo1_lightning report FOLDER [FOLDER ...] [format=html|png|svg|pdf] [output=FILE]

One page of all runs in the folders: learning curves, final scores, losses, configuration, videos.
format=png, svg or pdf draws the learning curves alone, for a paper.
output is report.html (.png, ...) in the folder, or in the folder that all of them are in.
"""


def main() -> None:
    """Run the command line."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE, end="")
        sys.exit(0 if words else 2)
    try:
        folders, options = parse(words)
        path = make_report(folders, **options)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(path)


def parse(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Split a command line into folders and options.

    Raises:
        ConfigurationError: an option that there is none of, or no folder.
    """
    folders: list[Path] = []
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or Path(word).is_dir():  # a sweep's folder may be called seed=1
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


def make_report(folders: Sequence[Path], format: str = "", output: str = "") -> Path:
    """Write the report of all runs in ``folders`` and return where it is.

    Args:
        folders: of runs or sweeps.
        format: one of `FORMATS`; by default what ``output`` ends with, or HTML.
        output: the file; by default ``report.FORMAT`` in the folder that all ``folders`` are in.

    Raises:
        ConfigurationError: there is no run, no such format, ``output`` ends in another, the file
            cannot be written, or the extra ``report`` is missing.
    """
    ending = Path(output).suffix[1:]
    format = format or ending or FORMATS[0]
    check_choice("format", format, FORMATS)
    if output and ending != format:
        raise ConfigurationError(f"output={output} does not end in the format, expected .{format}")
    runs = find_runs(folders)
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    near = common.is_relative_to(Path.cwd())
    default = (Path(os.path.relpath(common)) if near else common) / f"report.{format}"
    path = Path(output) if output else default
    try:
        if format == "html":
            from ppo1_lightning.runs.report.page import write_page as write
        else:
            from ppo1_lightning.runs.report.figure import write_figure as write
        write(runs, path)
    except ImportError as error:
        raise ConfigurationError(
            f"the report needs {error.name}: pip install 'ppo1-lightning[report]'"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written ({error.strerror or error})") from error
    return path
