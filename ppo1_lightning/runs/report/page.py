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

import numpy as np

from ppo1_lightning.runs.report import charts
from ppo1_lightning.runs.report.charts import Chart
from ppo1_lightning.runs.report.groups import (
    Group,
    differences,
    environments,
    make_groups,
    scales_of,
    shared,
    swept_keys,
    value_of,
)
from ppo1_lightning.runs.report.runs import UNKNOWN_SEED, Run
from ppo1_lightning.runs.report.statistics import bootstrap_interval, interquartile_mean

VIDEO_BYTES = 40 * 2**20
"""Videos beyond these are linked, not embedded."""

DIFFERENCE_COLUMNS = 6
"""Groups at most that have a column each in the table of differences."""


@dataclass(frozen=True)
class Score:
    """Final scores of one group on one environment (or on all, scaled)."""

    group: Group
    count: int
    iqm: float
    low: float
    high: float
    mean: float
    std: float
    best: float


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one environment, and the axis on which their intervals are drawn."""

    title: str
    note: str
    scores: list[Score]

    def position(self, value: float) -> float:
        """Return where ``value`` is on the axis, in per cent."""
        known = [v for s in self.scores for v in (s.iqm, s.low, s.high) if math.isfinite(v)]
        low, high = min(known, default=0.0), max(known, default=1.0)
        span = high - low
        return 50.0 if span == 0 else round(4 + 92 * (value - low) / span, 2)


@dataclass(frozen=True)
class Section:
    """The charts of one environment."""

    env: str
    curves: list[Chart]
    diagnostics: list[Chart]
    throughput: list[Chart]


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write the report of ``runs`` to ``path``.

    Raises:
        ImportError: the extra ``report`` is missing.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    groups = make_groups(runs)
    envs = environments(runs)
    sections = [_section(groups, env) for env in envs]
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"number": number, "duration": duration, "json": _json}
    html = templates.get_template("page.html").render(
        title=_title(runs, envs),
        tiles=_tiles(runs, groups),
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        swept=swept_keys(runs),
        runs=_run_rows(runs, groups),
        groups=groups,
        envs=envs,
        sections=sections,
        tables=_score_tables(groups, envs),
        caveats=_caveats(groups, envs),
        repeated=any(len(g.of(env)) > 1 for g in groups for env in envs),
        few=max(len(g.of(env)) for g in groups for env in envs) < 5,
        differences=_differences(runs, groups),
        shared=shared(runs),
        videos=_embed(runs, groups, path.parent),
        plotly=get_plotlyjs(),
        is_finite=math.isfinite,
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _title(runs: Sequence[Run], envs: Sequence[str]) -> str:
    if len(runs) == 1:
        return runs[0].env
    return envs[0] if len(envs) == 1 else f"{len(envs)} environments"


def _tiles(runs: Sequence[Run], groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return the figures at the top: name, value, remark."""
    finished = sum(run.share >= 1 for run in runs)
    unfinished = "finished" if finished == len(runs) else f"{finished} finished"
    steps = [run.steps[-1] for run in runs if len(run.steps)]
    seconds = [run.seconds[-1] for run in runs if np.isfinite(run.seconds).any()]
    speeds = [run.speed for run in runs if math.isfinite(run.speed)]
    seeds = len({run.seed for run in runs})
    tiles = [
        ("Runs", str(len(runs)), unfinished if len(runs) > 1 else _status(runs[0])),
        (
            "Environment steps",
            number(max(steps, default=0)),
            "of the longest run" if len(runs) > 1 else "",
        ),
        ("Training time", duration(sum(seconds)), "of all runs" if len(runs) > 1 else ""),
        (
            "Steps per second",
            number(float(np.median(speeds)) if speeds else math.nan),
            "median of the runs" if len(runs) > 1 else "median",
        ),
    ]
    if len(runs) > 1:
        kinds = "configuration" if len(groups) == 1 else "configurations"
        tiles.insert(
            1, (kinds.capitalize(), str(len(groups)), f"{seeds} seeds" if seeds > 1 else "1 seed")
        )
    else:
        score = number(runs[0].score)
        tiles.insert(1, ("Final return", score, "mean of 100 episodes"))
    return tiles


def _section(groups: Sequence[Group], env: str) -> Section:
    curves = [charts.learning_curve(groups, env, axis) for axis in charts.X_AXES]
    evaluated = charts.line_chart(groups, env, charts.EVALUATION, height=340)
    if evaluated:
        curves.append(
            Chart("Return in evaluation", "whole episodes, frozen policy", evaluated, 340)
        )
    diagnostics = [
        Chart(title, what, charts.line_chart(groups, env, column, height=210), 210)
        for column, title, what in charts.DIAGNOSTICS
    ]
    speed = Chart(
        "Steps per second",
        "environment steps over wall time, between two rows of metrics",
        charts.line_chart(groups, env, "steps_per_second", height=210),
        210,
    )
    return Section(
        env,
        [chart for chart in curves if chart.figure],
        [chart for chart in diagnostics if chart.figure],
        [speed] if speed.figure else [],
    )


def _score_tables(groups: Sequence[Group], envs: Sequence[str]) -> list[ScoreTable]:
    """Return a table for each environment and, where groups share several, one for all of them."""
    tables = []
    for env in envs:
        scores = [_score(g, [_known(g.of(env))]) for g in groups if len(_known(g.of(env)))]
        if scores:
            tables.append(ScoreTable(env, "", _ranked(scores)))
    everywhere = [g for g in groups if all(len(_known(g.of(env))) for env in envs)]
    if len(envs) > 1 and len(everywhere) > 1:
        scales = scales_of([run for group in groups for run in group.runs])
        scaled = [
            _score(g, [np.array([scales[env](s) for s in _known(g.of(env))]) for env in envs])
            for g in everywhere
        ]
        note = "each environment scaled: 0 is the lowest final score of these runs, 1 the highest"
        tables.insert(0, ScoreTable(f"All {len(envs)} environments", note, _ranked(scaled)))
    return tables


def _caveats(groups: Sequence[Group], envs: Sequence[str]) -> list[str]:
    """Return what the scores of these runs should not be taken for, in whole sentences."""
    together = [[r for r in g.of(env) if math.isfinite(r.score)] for g in groups for env in envs]
    scored = [run for runs in together for run in runs]
    unfinished = sum(run.share < 1 for run in scored)
    sentences = []
    if unfinished:
        sentences.append(
            f"Not finished: {unfinished} of {len(scored)} runs, whose last value so far counts."
        )
    if any(len({run.budget for run in runs}) > 1 for runs in together):
        sentences.append("Some runs of one configuration had other budgets than the others.")
    seeds = [[run.seed for run in runs if run.seed != UNKNOWN_SEED] for runs in together]
    if any(len(set(of_group)) < len(of_group) for of_group in seeds):
        sentences.append(
            "Some runs of one configuration have the same seed: they are no repetitions."
        )
    return sentences


def _known(runs: Iterable[Run]) -> np.ndarray:
    return np.array([run.score for run in runs if math.isfinite(run.score)])


def _score(group: Group, strata: list[np.ndarray]) -> Score:
    scores = np.concatenate(strata)
    return Score(
        group,
        len(scores),
        float(interquartile_mean(scores)),
        *bootstrap_interval(strata),
        float(scores.mean()),
        float(scores.std(ddof=1)) if len(scores) > 1 else math.nan,
        float(scores.max()),
    )


def _ranked(scores: list[Score]) -> list[Score]:
    return sorted(scores, key=lambda score: -score.iqm)


def _status(run: Run) -> str:
    if not len(run.steps):
        return "no rows"
    if math.isnan(run.share):
        return "unknown"
    return "finished" if run.share >= 1 else f"{math.floor(100 * run.share)} % done"


def _run_rows(runs: Sequence[Run], groups: Sequence[Group]) -> list[dict[str, Any]]:
    group_of = _group_of(groups)
    return [
        {
            "run": run,
            "group": group_of[id(run)],
            "status": _status(run),
            "steps": float(run.steps[-1]) if len(run.steps) else math.nan,
            "seconds": run.last("seconds"),
            "score": run.score,
            "best": float(np.nanmax(run.column(charts.SCORE)))
            if math.isfinite(run.score)
            else math.nan,
            "speed": run.speed,
        }
        for run in runs
    ]


def _group_of(groups: Sequence[Group]) -> dict[int, Group]:
    """Return the group of each run, by its `id`."""
    return {id(run): group for group in groups for run in group.runs}


def _differences(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, Any]:
    """Return the table of values that differ: a column a group, or the values with their number."""
    keys = [key for key in differences(runs) if key != "env.id"]  # that has tables of its own
    swept = swept_keys(runs)
    keys.sort(key=lambda key: key not in swept)  # what was swept comes first; stable
    columns = len(groups) <= DIFFERENCE_COLUMNS
    rows = []
    for key in keys:
        parts = [g.runs for g in groups] if columns else [tuple(runs)]
        rows.append((key, key in swept, [_counted([value_of(r, key) for r in p]) for p in parts]))
    return {"columns": groups if columns else None, "rows": rows}


def _counted(values: Sequence[str]) -> str:
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return values[0]
    shown = [f"{value} in {count}" for value, count in counts[:12]]
    return ", ".join(shown) + (f", {len(counts) - 12} more values" if len(counts) > 12 else "")


def _embed(runs: Sequence[Run], groups: Sequence[Group], folder: Path) -> list[dict[str, Any]]:
    """Return the videos as data, each run's newest before others; as links once there are many."""
    group_of = _group_of(groups)
    newest_first = [(age, run, file) for run in runs for age, file in enumerate(run.videos[::-1])]
    left = VIDEO_BYTES
    found = []
    for _, run, file in sorted(newest_first, key=lambda video: video[0]):
        size = file.stat().st_size
        source = Path(os.path.relpath(file, folder)).as_posix()
        if size <= left:
            left -= size
            kind = "video/mp4" if file.suffix == ".mp4" else "image/gif"
            source = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        found.append(
            {
                "run": run,
                "group": group_of[id(run)],
                "name": file.stem,
                "source": source,
                "embedded": source.startswith("data:"),
                "movie": file.suffix == ".mp4",
            }
        )
    return found


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
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _json(value: Any) -> str:
    """Return JSON that can stand in a script element."""
    from markupsafe import Markup

    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))
