"""One HTML page of everything that the runs tell: it needs no network and no other file."""

from __future__ import annotations

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ppo1_lightning.runs.files import replacing
from ppo1_lightning.runs.report.charts import sections_of
from ppo1_lightning.runs.report.groups import (
    Group,
    differences,
    environments,
    make_groups,
    shared,
    swept_keys,
    value_of,
)
from ppo1_lightning.runs.report.runs import Run
from ppo1_lightning.runs.report.scores import caveats, score_tables
from ppo1_lightning.runs.untrusted import printable

VIDEO_BYTES = 40 * 2**20
"""Videos beyond these are linked, not embedded."""

DIFFERENCE_COLUMNS = 6
"""Groups at most that have a column each in the table of differences."""


@dataclass(frozen=True)
class Video:
    """One video of a run, and what the page takes it from: data, or a link."""

    run: Run
    file: Path
    source: str

    @property
    def name(self) -> str:
        """Of its file."""
        return printable(self.file.stem)

    @property
    def embedded(self) -> bool:
        """Whether the page itself holds it."""
        return self.source.startswith("data:")


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write the report of ``runs`` to ``path``.

    Raises:
        ImportError: the extra ``report`` is missing.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    groups, envs = make_groups(runs), environments(runs)
    seeds = [len(group.of(env)) for group in groups for env in envs]
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"number": number, "duration": duration, "json": _json}
    html = templates.get_template("page.html").render(
        title=envs[0] if len(envs) == 1 else f"{len(envs)} environments",
        tiles=_tiles(runs, groups),
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        swept=swept_keys(runs),
        runs=runs,
        groups=groups,
        group_of={run.name: group for group in groups for run in group.runs},
        envs=envs,
        sections=sections_of(groups, envs),
        tables=score_tables(groups, envs),
        caveats=caveats(groups, envs),
        repeated=max(seeds) > 1,
        few=max(seeds) < 5,
        differences=_differences(runs, groups),
        shared=shared(runs),
        videos=_videos(runs, path.parent),
        plotly=get_plotlyjs(),
        is_finite=math.isfinite,
    )
    with replacing(path) as new:
        new.write_text(html, encoding="utf-8")


def _tiles(runs: Sequence[Run], groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return the figures at the top: name, value, remark."""
    steps = max(_known(run.last("env_steps") for run in runs), default=0)
    seconds = duration(sum(_known(run.last("seconds") for run in runs)))
    speeds = _known(run.speed for run in runs)
    speed = number(float(np.median(speeds)) if speeds else math.nan)
    if len(runs) == 1:
        return [
            ("Runs", "1", runs[0].status),
            ("Final return", number(runs[0].score), "mean of 100 episodes"),
            ("Environment steps", number(steps), ""),
            ("Training time", seconds, ""),
            ("Steps per second", speed, "median"),
        ]
    finished = sum(run.share >= 1 for run in runs)
    seeds = len({run.seed for run in runs})
    return [
        ("Runs", str(len(runs)), f"{finished} finished" if finished < len(runs) else "finished"),
        (
            _plural("Configuration", len(groups)),
            str(len(groups)),
            f"{seeds} {_plural('seed', seeds)}",
        ),
        ("Environment steps", number(steps), "of the longest run"),
        ("Training time", seconds, "of all runs"),
        ("Steps per second", speed, "median of the runs"),
    ]


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _plural(name: str, count: int) -> str:
    return name if count == 1 else f"{name}s"


def _differences(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, Any]:
    """Return the table of values that differ: a column a group, or the values with their number."""
    swept = swept_keys(runs)
    keys = [key for key in differences(runs) if key != "env.id"]  # that has tables of its own
    keys.sort(key=lambda key: key not in swept)  # what was swept comes first; stable
    columns = groups if len(groups) <= DIFFERENCE_COLUMNS else None
    parts = [group.runs for group in columns] if columns else [runs]
    rows = [
        (key, key in swept, [_counted([value_of(run, key) for run in part]) for part in parts])
        for key in keys
    ]
    return {"columns": columns, "rows": rows}


def _counted(values: Sequence[str]) -> str:
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return values[0]
    shown = [f"{value} in {count}" for value, count in counts[:12]]
    return ", ".join(shown) + (f", {len(counts) - 12} more values" if len(counts) > 12 else "")


def _videos(runs: Sequence[Run], folder: Path) -> list[Video]:
    """Return the videos as data, each run's newest before others; as links once there are many."""
    newest_first = [(age, run, file) for run in runs for age, file in enumerate(run.videos[::-1])]
    left = VIDEO_BYTES
    videos = []
    for _, run, file in sorted(newest_first, key=lambda video: video[0]):
        size = file.stat().st_size
        source = quote(os.fsencode(Path(os.path.relpath(file, folder)).as_posix()))
        if size <= left:
            left -= size
            kind = "video/mp4" if file.suffix == ".mp4" else "image/gif"
            source = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        videos.append(Video(run, file, source))
    return videos


def number(value: float) -> str:
    """Return a number as a person writes it: ``1.2M``, ``20,224``, ``0.031``, ``-`` for NaN."""
    size = abs(value)
    if not math.isfinite(value):
        return "-"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _json(value: Any) -> str:
    """Return JSON that can stand in a script element."""
    from markupsafe import Markup

    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))
