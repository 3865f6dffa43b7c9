"""Charts for reports, drawn by matplotlib without a display."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from torch import Tensor

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
    lines: list[tuple[list[int], list[float]]], name: str, marks: Sequence[float] = ()
) -> Html:
    """Curves over the steps of a run, as an image in SVG.

    Args:
        lines: The steps and the values of each curve; page.keys is their legend.
        name: What the chart shows, for those who do not see it.
        marks: Steps that get a dotted line.
    """
    figure, axes = _new_figure(3.6, 2.3)
    for steps, values in lines:
        thin = max(1, len(steps) // MOST_POINTS)
        shown = steps[::-1][::thin][::-1], values[::-1][::thin][::-1]  # with the last one
        axes.plot(*shown, marker="o" if len(steps) < 20 else "")
    last = max((steps[-1] for steps, _ in lines if steps), default=1)
    axes.set_xlim(-0.02 * last, 1.02 * last)
    for step in marks:
        axes.axvline(step, color="black", lw=0.8, ls=":")
    return _to_html(figure, name)


@rc_context(LOOK)
def draw_calibration(confidence: Tensor, accuracy: Tensor, counts: Tensor) -> Html:
    """A reliability diagram as an image in SVG: the accuracy of images in each bin of confidence.

    Args:
        confidence: The mean of each bin, in [0, 1].
        accuracy: That of each bin, in [0, 1].
        counts: Images in each bin; bins without any are left out.
    """
    figure, axes = _new_figure(3.6, 3.0)
    filled, width = counts > 0, 1 / len(counts)
    left = (torch.arange(len(counts))[filled] * width).numpy()
    heights = accuracy[filled].numpy()
    axes.bar(left, heights, width, align="edge", color=COLOURS[0], alpha=0.55)
    axes.plot(confidence[filled].numpy(), heights, "o", color=COLOURS[1])
    axes.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return _to_html(figure, "accuracy over confidence, against the diagonal")


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of the given size in inches, and its only axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _to_html(figure: Figure, name: str) -> Html:
    """A chart as an image, in which no id or style can meet those of the page or another chart."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return element("img", class_="chart", src=data_url("svg+xml", file.getvalue()), alt=name)
