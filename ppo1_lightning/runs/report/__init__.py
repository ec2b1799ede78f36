"""Reports on finished and unfinished runs: ``python -m ppo1_lightning report outputs/...``.

`runs` reads them, `groups` puts them together by what was swept, `statistics` has the mathematics,
`scores` and `charts` what is shown, `page` writes one HTML file, `figure` a picture for a paper.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppo1_lightning.errors import ConfigurationError, check_choice
from ppo1_lightning.runs.report.runs import common_folder, find_runs

FORMATS = ("html", "png", "svg", "pdf")


def make_report(folders: Sequence[Path], format: str = "", output: str = "") -> Path:
    """Write the report of all runs in ``folders`` and return where it is.

    Args:
        folders: of runs or sweeps.
        format: one of `FORMATS`; by default what ``output`` ends with, or HTML.
        output: the file; by default ``report.FORMAT`` in the folder that all ``folders`` are in.

    Raises:
        ConfigurationError: there is no run, no such format, ``output`` ends in another, or the
            extra ``report`` is missing.
        StorageError: the file cannot be written.
    """
    ending = Path(output).suffix[1:]
    format = format or ending or FORMATS[0]
    check_choice("format", format, FORMATS)
    if output and ending != format:
        raise ConfigurationError(f"output={output} does not end in the format, expected .{format}")
    runs = find_runs(folders)
    common = common_folder([folder.absolute() for folder in folders])
    near = common.is_relative_to(Path.cwd())
    default = (Path(os.path.relpath(common)) if near else common) / f"report.{format}"
    path = Path(output) if output else default
    try:
        if format == "html":
            from ppo1_lightning.runs.report.page import write_page as write
        else:
            from ppo1_lightning.runs.report.figure import write_figure as write
        with np.errstate(all="ignore"):  # a stranger's numbers, whatever they are
            write(runs, path)
    except ImportError as error:
        raise ConfigurationError(
            f"the report needs {error.name}: pip install 'ppo1-lightning[report]'"
        ) from error
    return path
