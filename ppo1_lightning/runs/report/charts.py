"""The charts of a page, as Plotly's JSON with names of colours that the page's theme fills in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from ppo1_lightning.runs.report.curves import Curve, curve_of, sample_efficiency
from ppo1_lightning.runs.report.groups import COLOURS, Group
from ppo1_lightning.runs.report.runs import SCORE
from ppo1_lightning.runs.report.statistics import Floats

X_AXES = {"env_steps": "environment steps", "seconds": "wall time of training"}

LABEL_LENGTH = 32
"""Characters at the end of a line."""

EVALUATION = ("evaluation/return_mean", "Return in evaluation", "whole episodes, frozen policy")

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

SPEED = (
    "steps_per_second",
    "Steps per second",
    "environment steps over wall time, between two rows of metrics",
)

_FROM_ZERO = ("kl", "clip_fraction", "steps_per_second", "learning_rate")


@dataclass(frozen=True)
class Chart:
    """One chart: ``figure`` is what ``Plotly.newPlot`` takes."""

    title: str
    subtitle: str
    figure: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """The charts of one environment: those of which some run has the column; or of all of them."""

    title: str
    curves: list[Chart]
    diagnostics: list[Chart]
    throughput: list[Chart]


def sections_of(groups: Sequence[Group], envs: Sequence[str]) -> list[Section]:
    """Return the sections of a page: all environments together, where there are several, first."""
    sections = [_section_of(groups, env) for env in envs]
    together = "interquartile mean of scaled returns, as far as the shortest run"
    lines = sample_efficiency(groups, envs)
    chart = _chart(lines, SCORE, "Sample efficiency", together, height=340, labels=True)
    if chart is not None:
        sections.insert(0, Section(f"All {len(envs)} environments", [chart], [], []))
    return sections


def _section_of(groups: Sequence[Group], env: str) -> Section:
    """Return the charts of one environment, a line for each group."""

    def chart(column: str, *titles: str, x_axis: str = "env_steps", **look: Any) -> Chart | None:
        lines = [(g, c) for g in groups if (c := curve_of(g, env, column, x_axis)) is not None]
        return _chart(lines, column, *titles, x_axis=x_axis, **look)

    large, small = (partial(chart, height=height) for height in (340, 210))
    returns = "mean of the last 100 training episodes"
    curves = [
        large(SCORE, f"Return over {X_AXES[axis]}", returns, x_axis=axis, labels=len(groups) > 1)
        for axis in X_AXES
    ]
    diagnostics = [small(*row) for row in DIAGNOSTICS]
    parts = [*curves, large(*EVALUATION)], diagnostics, [small(*SPEED)]
    return Section(env, *([chart for chart in part if chart is not None] for part in parts))


def _chart(
    lines: Sequence[tuple[Group, Curve]],
    column: str,
    title: str,
    subtitle: str,
    *,
    height: int,
    x_axis: str = "env_steps",
    labels: bool = False,
) -> Chart | None:
    """Return a chart of lines with their intervals, None where there is no line."""
    lines = [line for line in lines if np.isfinite(line[1].mean).any()]
    if not lines:
        return None
    lines = sorted(lines, key=lambda line: (line[0].colour is not None, -(line[0].colour or 0)))
    last = max(float(curve.x[-1]) for _, curve in lines)
    unit, unit_name = _time_unit(last) if x_axis == "seconds" else (1.0, "")
    low, high = _y_range(column, [curve for _, curve in lines])
    log = column == "loss/value" and low > 0 and high / low > 100
    opacity = "26" if len(lines) <= 4 else "18"
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 8, "b": 44},
        "showlegend": False,
        "hovermode": "x unified" if len(lines) <= COLOURS else "closest",
        "xaxis": {
            "title": {"text": X_AXES[x_axis] + unit_name},
            "range": [0, last / unit * 1.005],
            "hoverformat": ",.4~s" if x_axis == "env_steps" else ".3~f",
        },
        "yaxis": {
            **({"type": "log"} if log else {"range": [low, high]}),
            **({"tickformat": "~s"} if max(-low, high) >= 2000 else {}),
        },
    }
    if labels:
        layout["annotations"] = _end_labels(lines, low, high, height - 52)
        length = max((len(_end_label(g)) for g, _ in lines if g.colour is not None), default=0)
        layout["margin"]["r"] = 24 + round(6.6 * length)
    data = [trace for group, curve in lines for trace in _traces(group, curve, unit, opacity)]
    return Chart(title, subtitle, {"data": data, "layout": layout})


def _traces(group: Group, curve: Curve, unit: float, opacity: str) -> list[dict[str, Any]]:
    """Return a group's band, and its line: dotted where not all of its runs count."""
    colour = "@muted-line" if group.colour is None else f"@c{group.colour}"
    x, band = curve.x / unit, np.isfinite(curve.low)
    traces: list[dict[str, Any]] = []
    if band.any() and group.colour is not None:
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
    dash = "dash" if group.dashed else "solid"
    name = plotly_text(group.label)
    common = {"name": name, "hovertemplate": f"%{{y:.4~g}}<extra>{name}</extra>"}
    partly = ~curve.complete
    joined = partly | np.r_[partly[1:], False] | np.r_[False, partly[:-1]]  # to the solid parts
    for where, style in ((curve.complete, dash), (joined & partly.any(), "dot")):
        if where.any():
            line = {"color": colour, "width": 1 if group.colour is None else 2, "dash": style}
            y = _rounded(np.where(where, curve.mean, np.nan))
            traces.append({**common, "mode": "lines", "x": _rounded(x), "y": y, "line": line})
    if len(x) == 1:
        traces[-1] |= {"mode": "markers", "marker": {"color": colour, "size": 7}}
    return traces


def _y_range(column: str, curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the range of the y axis: all of a score, no outliers of anything else."""
    values = np.concatenate([part for c in curves for part in (c.mean, c.low, c.high)])
    edges = (0, 100) if column == SCORE else (0.5, 99.5)
    low, high = np.percentile(values[np.isfinite(values)], edges)
    if column == "explained_variance":
        low, high = max(low, -1.0), max(high, 0.0)
    elif low >= 0 and column in _FROM_ZERO:
        low = 0.0
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    return float(low - margin if low else 0.0), float(high + margin)


def _end_labels(
    lines: Sequence[tuple[Group, Curve]], low: float, high: float, pixels: int
) -> list[dict[str, Any]]:
    """Return a label right of each coloured line's end, moved apart where they would overlap."""
    ends = [(c.mean[np.isfinite(c.mean)][-1], g) for g, c in lines if g.colour is not None]
    if not ends:
        return []
    ends.sort(key=lambda end: end[0])
    # A label's place is at least a gap above the one below it, and else as near to its line as can
    # be: without the gaps the places only rise.
    gaps = 17 * (high - low) / pixels * np.arange(len(ends))
    places = isotonic_regression(np.array([value for value, _ in ends]) - gaps).x
    places = np.clip(places, low, max(low, high - gaps[-1])) + gaps
    return [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 8,
            "y": float(place),
            "text": plotly_text(_end_label(group)),
            "showarrow": False,
            "font": {"color": f"@c{group.colour}", "size": 12},
        }
        for place, (_, group) in zip(places, ends, strict=True)
    ]


def plotly_text(text: str) -> str:
    """Return text that Plotly shows as it is: neither its HTML, nor a figure's value or colour."""
    return escape(text, quote=False).translate({ord("%"): "&#37;", ord("@"): "&#64;"})


def _end_label(group: Group) -> str:
    """Return a group's label, or its values alone where that is long."""
    label = group.label if len(group.label) <= LABEL_LENGTH else group.values
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"


def _time_unit(seconds: float) -> tuple[float, str]:
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit:
            return unit, f", {name}"
    return 1.0, ", seconds"


def _rounded(values: Floats) -> list[float | None]:
    """Return numbers of five digits, None (a gap in the line) for NaN."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
