"""Learning curves as a picture for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.runs.files import replacing
from ppo1_lightning.runs.report.curves import curve_of
from ppo1_lightning.runs.report.groups import Group, environments, make_groups
from ppo1_lightning.runs.report.runs import SCORE, Run

PALETTE = ("#0067a8", "#c04a00", "#007a58", "#a0447d", "#5459c4", "#8a6400", "#137a92", "#666b73")
"""The page's, on white."""

GREY = "#c3c6ca"

COLUMNS = 3

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#777777",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ppo1_lightning",  # the same runs, the same file
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name may hold a dollar sign
}


def write_figure(runs: Sequence[Run], path: Path) -> None:
    """Write the mean return over environment steps, one panel an environment.

    Bands are the 95 % bootstrap intervals over seeds. The format is what ``path`` ends with.

    Raises:
        ConfigurationError: no episode has ended in any run.
    """
    groups = make_groups(runs)
    envs = environments([run for run in runs if np.isfinite(run.score)])
    if not envs:
        raise ConfigurationError("no episode has ended in any of the runs: there is no curve")
    with mpl.rc_context(STYLE):
        columns = min(COLUMNS, len(envs))
        rows = -(-len(envs) // columns)
        size = (5.2, 3.2) if len(envs) == 1 else (2.9 * columns, 2.3 * rows)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, env in zip(panels, envs, strict=False):
            _draw(panel, groups, env)
        for panel in panels[len(envs) :]:
            panel.axis("off")
        for panel in panels[::columns]:
            panel.set_ylabel("return, last 100 episodes")
        if len(groups) > 1:
            lines = [line for panel in panels for line in panel.lines]
            named = {str(line.get_label()): line for line in lines if line.get_label()[0] != "_"}
            add_legend(figure, named)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with replacing(path) as new:
            figure.savefig(new, dpi=200, metadata=metadata)


def add_legend(figure: Figure, named: Mapping[str, Any]) -> None:
    """Add a legend below the panels, in as many columns as there is room for, of its own height."""
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
    legend = None
    for columns, size in ((4, 8), (3, 8), (2, 8), (1, 8), (1, 6), (1, 4)):
        if legend is not None:
            legend.remove()
        look = {"ncols": min(columns, len(named)), "fontsize": size}
        legend = figure.legend(named.values(), named.keys(), **look, **place)
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= figure.bbox.width:
            break
    assert legend is not None
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + height)


def _draw(panel: Axes, groups: Sequence[Group], env: str) -> None:
    for group in sorted(groups, key=lambda group: group.colour is not None):
        curve = curve_of(group, env, SCORE, "env_steps")
        if curve is None:
            continue
        look: dict[str, Any] = {"color": GREY, "linewidth": 0.6}
        if group.colour is not None:
            colour = PALETTE[group.colour]
            look = {"color": colour, "linewidth": 1.3, "label": group.label}
            look["linestyle"] = "dashed" if group.dashed else "solid"
            band = {"color": colour, "alpha": 0.16, "linewidth": 0}
            panel.fill_between(curve.x, curve.low, curve.high, **band)
        panel.plot(curve.x, curve.mean, **look)
    panel.set_title(env, loc="left")
    panel.set_xlabel("environment steps")
    panel.set_xlim(left=0)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.grid(axis="y", color="#eeeeee", linewidth=0.6)
    panel.set_axisbelow(True)
