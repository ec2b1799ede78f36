"""The charts of a page, as Plotly's JSON with names of colours that the page's theme fills in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo1_lightning.runs.report.groups import COLOURS, Group
from ppo1_lightning.runs.report.runs import SCORE, Run
from ppo1_lightning.runs.report.statistics import Floats, common_grid, mean_and_interval, resample

EVALUATION = "evaluation/return_mean"
"""The column of evaluations while training, where they are on."""

X_AXES = {"env_steps": "environment steps", "seconds": "wall time of training"}

LABEL_LENGTH = 32
"""Characters at the end of a line."""

DIAGNOSTICS = (
    ("loss/surrogate", "Policy loss", "clipped surrogate, negated, after the update"),
    ("loss/value", "Value loss", "squared error of the value function"),
    ("entropy", "Entropy", "of the action distribution, in nats"),
    ("kl", "KL divergence", "exact, from the old policy to the updated one"),
    ("clip_fraction", "Clip fraction", "ratios outside the clip range after the update"),
    (
        "explained_variance",
        "Explained variance",
        "of returns by values; 1 is perfect, 0 a constant",
    ),
    ("episode_length_mean", "Episode length", "mean of the last 100 episodes"),
    ("learning_rate", "Learning rate", "Adam's step size"),
    ("gradient_norm", "Gradient norm", "before clipping"),
)
"""Columns, their titles and what they show."""


@dataclass(frozen=True)
class Chart:
    """One chart: ``figure`` is what ``Plotly.newPlot`` takes."""

    title: str
    subtitle: str
    figure: Mapping[str, Any]
    height: int


@dataclass(frozen=True)
class Curve:
    """Mean and interval of a group's runs, ``[G]`` each; NaN where there is none."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    complete: NDArray[np.bool_]
    """Where all of the group's runs count: none has ended, or not logged anything yet."""


def curve_of(runs: Sequence[Run], column: str, x_axis: str) -> Curve | None:
    """Return the curve of runs of one environment, None where none of them has the column.

    Over wall time a finished run keeps its last value until the slowest of its group has finished.
    """
    runs = [run for run in runs if np.isfinite(run.column(column) + run.column(x_axis)).any()]
    if not runs:
        return None
    grid = common_grid([run.column(x_axis)[np.isfinite(run.column(column))] for run in runs])
    curves = np.stack(
        [
            resample(
                run.column(x_axis),
                run.column(column),
                grid,
                right=run.last(column) if x_axis == "seconds" and run.share >= 1 else np.nan,
            )
            for run in runs
        ]
    )
    mean, low, high = mean_and_interval(curves)
    return Curve(grid, mean, low, high, np.asarray(np.isfinite(curves).all(0)))


def learning_curve(groups: Sequence[Group], env: str, x_axis: str, *, height: int = 340) -> Chart:
    """Return the mean return of each group, labelled at the end of its line."""
    title = f"Return over {X_AXES[x_axis]}"
    chart = line_chart(groups, env, SCORE, x_axis, height=height, labels=len(groups) > 1)
    return Chart(title, "mean of the last 100 training episodes", chart, height)


def line_chart(
    groups: Sequence[Group],
    env: str,
    column: str,
    x_axis: str = "env_steps",
    *,
    height: int,
    labels: bool = False,
) -> dict[str, Any]:
    """Return a line with its interval for each group; empty where no run has the column."""
    curves = [(g, c) for g in groups if (c := curve_of(g.of(env), column, x_axis)) is not None]
    if not curves:
        return {}
    curves.sort(key=lambda pair: (pair[0].colour is not None, -(pair[0].colour or 0)))
    last = max(float(np.nanmax(curve.x)) for _, curve in curves)
    unit, unit_name = _time_unit(last) if x_axis == "seconds" else (1.0, "")
    low, high = _y_range(column, [curve for _, curve in curves])
    log = column == "loss/value" and low > 0 and high / low > 100
    traces: list[dict[str, Any]] = []
    ends: list[tuple[float, Group]] = []
    for group, curve in curves:
        traces += _traces(group, curve, unit, opacity="26" if len(curves) <= 4 else "18")
        if group.colour is not None:
            ends.append((float(curve.mean[np.isfinite(curve.mean)][-1]), group))
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 8, "b": 44},
        "showlegend": False,
        "hovermode": "x unified" if len(curves) <= COLOURS else "closest",
        "xaxis": {
            "title": {"text": f"{X_AXES[x_axis]}{f', {unit_name}' if unit_name else ''}"},
            "range": [0, last / unit * 1.005],
            "hoverformat": ",.4~s" if x_axis == "env_steps" else ".3~f",
        },
        "yaxis": {
            **({"type": "log"} if log else {"range": [low, high]}),
            **({"tickformat": "~s"} if max(-low, high) >= 2000 else {}),
        },
    }
    if labels and ends:
        layout["annotations"] = _end_labels(ends, low, high, height - 52)
        layout["margin"]["r"] = 24 + round(6.6 * max(len(_end_label(g)) for _, g in ends))
    return {"data": traces, "layout": layout}


def _traces(group: Group, curve: Curve, unit: float, *, opacity: str) -> list[dict[str, Any]]:
    muted = group.colour is None
    colour = "@muted-line" if muted else f"@c{group.colour}"
    # the second half of the palette is dashed as well, for who tells fewer colours apart
    dash = "dash" if group.colour is not None and group.colour >= COLOURS // 2 else "solid"
    x = curve.x / unit
    band = np.isfinite(curve.low)
    traces: list[dict[str, Any]] = []
    if band.any() and not muted:
        traces.append(
            {
                "x": _rounded(np.concatenate([x[band], x[band][::-1]])),
                "y": _rounded(np.concatenate([curve.high[band], curve.low[band][::-1]])),
                "fill": "toself",
                "fillcolor": f"{colour}~{opacity}",
                "line": {"width": 0},
                "mode": "lines",
                "hoverinfo": "skip",
            }
        )
    line = {"color": colour, "width": 1 if muted else 2}
    common = {
        "mode": "lines",
        "name": group.label,
        "hovertemplate": "%{y:.4~g}" + ("<extra>" + group.label.replace("<", "&lt;") + "</extra>"),
    }
    partly = ~curve.complete
    joined = partly | np.r_[partly[1:], False] | np.r_[False, partly[:-1]]  # to the solid parts
    for where, style in ((curve.complete, dash), (joined & partly.any(), "dot")):
        if where.any():
            y = _rounded(np.where(where, curve.mean, np.nan))
            traces.append({**common, "x": _rounded(x), "y": y, "line": {**line, "dash": style}})
    if len(x) == 1:
        traces[-1] |= {"mode": "markers", "marker": {"color": colour, "size": 7}}
    return traces


def _y_range(column: str, curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the range of the y axis: all of a score, no outliers of anything else."""
    parts = [part for c in curves for part in (c.mean, c.low, c.high)]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (0, 100) if column == SCORE else (0.5, 99.5))
    if column == "explained_variance":
        low, high = max(low, -1.0), max(high, 0.0)
    elif low >= 0 and column in ("kl", "clip_fraction", "steps_per_second", "learning_rate"):
        low = 0.0
    span = (high - low) or abs(high) or 1.0
    bottom = 0.0 if low == 0 else low - 0.06 * span
    return float(bottom), float(high + 0.06 * span)


def _end_labels(
    ends: Sequence[tuple[float, Group]], low: float, high: float, pixels: int
) -> list[dict[str, Any]]:
    """Return a label right of each line's end, moved apart where lines end close together."""
    gap = 17 * (high - low) / pixels
    ordered = sorted(ends, key=lambda end: end[0])
    places = [value for value, _ in ordered]
    for _ in range(200):  # push neighbours apart until none overlap
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 1e-9 * gap:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
        lift = max(low - places[0], 0.0) if places else 0.0
        drop = max(places[-1] - high, 0.0) if places else 0.0
        places = [place + lift - drop for place in places]
    return [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 8,
            "y": place,
            "text": _end_label(group).replace("<", "&lt;"),
            "showarrow": False,
            "font": {"color": f"@c{group.colour}", "size": 12},
        }
        for place, (_, group) in zip(places, ordered, strict=True)
    ]


def _end_label(group: Group) -> str:
    """Return a group's label, or its values alone where that is long."""
    label = group.label if len(group.label) <= LABEL_LENGTH else group.values
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"


def _time_unit(seconds: float) -> tuple[float, str]:
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit:
            return unit, name
    return 1.0, "seconds"


def _rounded(values: Floats) -> list[float | None]:
    """Return numbers of five digits, None (a gap in the line) for NaN."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
