"""A chart for reports, drawn by matplotlib without a display."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from engine.report.page import COLOURS, STROKES, Html, data_url, element

MOST_POINTS = 400  # of a curve that are drawn
LOOK: dict[Any, Any] = {  # transparent with black ink, which style.css inverts on a dark page
    "axes.prop_cycle": cycler(linestyle=[*STROKES]) * cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "savefig.transparent": True,
    "svg.fonttype": "none",  # text in the fonts of the reader, not outlines
    "svg.hashsalt": "",  # the same ids, so that a report can be repeated
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@rc_context(LOOK)
def draw_chart(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    name: str,
    marks: Sequence[float] = (),
) -> Html:
    """Curves, as over the steps of a run, as an image in SVG.

    No id or style in it can meet those of the page or of another chart.

    Args:
        lines: x, from 0 on and ascending, and y of each curve; page.keys is their legend.
        name: What the chart shows, for those who do not see it.
        marks: Values of x that get a dotted line.
    """
    figure = Figure(figsize=(3.6, 2.3), layout="constrained")  # inches
    axes = figure.add_subplot()
    for x, y in lines:
        thin = max(1, len(x) // MOST_POINTS)
        shown = x[::-1][::thin][::-1], y[::-1][::thin][::-1]  # with the last one
        axes.plot(*shown, marker="o" if len(x) < 20 else "")
    last = max((x[-1] for x, _ in lines if x), default=1)
    axes.set_xlim(-0.02 * last, 1.02 * last)
    for mark in marks:
        axes.axvline(mark, color="black", lw=0.8, ls=":")
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return element("img", class_="chart", src=data_url("svg+xml", file.getvalue()), alt=name)
