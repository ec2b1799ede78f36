"""Figures for papers: what is said in them is to be seen."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from ppo1_lightning.runs.report.figure import add_legend


@pytest.mark.parametrize("length", [3, 30, 60, 120])
@pytest.mark.parametrize("count", [2, 8])
def test_a_legend_is_within_the_figure(length: int, count: int) -> None:
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    panel = figure.subplots()
    figure.draw_without_rendering()
    before = panel.get_window_extent().height
    (line,) = panel.plot([0, 1], [0, 1])
    add_legend(figure, {f"{i}{'x' * length}": line for i in range(count)})
    figure.draw_without_rendering()
    (legend,) = figure.legends
    for text in legend.get_texts():
        extent = text.get_window_extent()
        assert extent.x0 >= 0
        assert extent.x1 <= figure.bbox.width
    assert panel.get_window_extent().height > 0.9 * before
