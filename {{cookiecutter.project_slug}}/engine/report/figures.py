"""Figures for reports, drawn by matplotlib without a display."""

import io
import itertools
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from engine.checkpoint import write_atomically
from engine.report.page import COLOURS, Html, escape

MOST_POINTS = 400  # of a curve that are drawn
_INK = "#123456"  # a colour that stands for that of the page's text; #123450 and on: the series
_NUMBERS = itertools.count()  # of the figures in a page


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of the given size in inches, and its only axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def save_sheet(images: list[Tensor], captions: list[str], path: Path, columns: int = 8) -> None:
    """Saves images in rows, each with its caption below it.

    Args:
        images: uint8, of shape (3, H, W).
        captions: One for each image.
        path: Where to write the PNG.
        columns: Images in a row.
    """
    rows = max(1, -(-len(images) // columns))
    width = 9.6 / columns
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    figure = Figure(figsize=(9.6, rows * (width + 0.15 * lines + 0.1)), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, images, captions, strict=False):
        pixels = image.permute(1, 2, 0).numpy()
        axes.imshow(pixels, interpolation="nearest" if max(pixels.shape) < 100 else "antialiased")
        lines_shown = [shorten_text(line, int(width * 15)) for line in caption.split("\n")]
        text = "\n".join(lines_shown)
        axes.set_title(text, fontsize=7, y=0, pad=-3, va="top", parse_math=False)
    write_atomically(path, partial(figure.savefig, format="png", dpi=120))


def shorten_text(text: str, most: int) -> str:
    """`text`, cut off after `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def draw_chart(
    lines: list[tuple[list[int], list[float]]], name: str, marks: Sequence[float] = ()
) -> Html:
    """Curves over the steps of a run, as SVG that takes its colours from the page around it.

    Args:
        lines: The steps and the values of each curve; page.keys is their legend.
        name: What the chart shows, for those who do not see it.
        marks: Steps that get a dotted line.
    """
    figure, axes = new_figure(3.6, 2.3)
    for number, (steps, values) in enumerate(lines):
        thin = max(1, len(steps) // MOST_POINTS)
        shown = steps[::-1][::thin][::-1], values[::-1][::thin][::-1]  # with the last one
        stroke = ("-", "--", ":", "-.")[number // COLOURS % 4]
        points = "o" if len(steps) < 20 else ""
        axes.plot(*shown, color=_sentinel(number), lw=1.3, ls=stroke, marker=points, ms=4)
    last = max((steps[-1] for steps, _ in lines if steps), default=1)
    axes.set_xlim(-0.02 * last, 1.02 * last)
    for step in marks:
        axes.axvline(step, color=_INK, lw=0.8, ls=":")
    return _to_svg(figure, name)


def draw_calibration(confidence: Tensor, accuracy: Tensor, counts: Tensor) -> Html:
    """A reliability diagram as SVG: the accuracy of the images in each bin of confidence.

    Args:
        confidence: The mean of each bin, in [0, 1].
        accuracy: That of each bin, in [0, 1].
        counts: Images in each bin; bins without any are left out.
    """
    figure, axes = new_figure(3.6, 3.0)
    filled = counts > 0
    width = 1 / len(counts)
    left = (torch.arange(len(counts))[filled] * width).numpy()
    heights = accuracy[filled].numpy()
    axes.bar(left, heights, width, align="edge", color=_sentinel(0), alpha=0.55)
    axes.plot(confidence[filled].numpy(), heights, "o", color=_sentinel(1), ms=4)
    axes.plot([0, 1], [0, 1], color=_INK, lw=0.8, ls="--")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return _to_svg(figure, "accuracy over confidence, against the diagonal")


def _sentinel(number: int) -> str:
    return f"#12345{number % COLOURS}"


def _to_svg(figure: Figure, name: str) -> Html:
    """A figure as an element of a page, its colours replaced by those of the page.

    Ids are left out, which a page with several figures would hold more than once, except those of
    the markers and clips that are used within; these get a number.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        axes.tick_params(colors=_INK, labelsize=8)
        axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    file = io.StringIO()
    number = next(_NUMBERS)
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{number}"}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = re.sub(r"(?s)^.*?<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", file.getvalue())
    text = re.sub(r"(?s)<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", text)
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', text))
    text = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r'(id="|href="|url\()(#?)([\w-]+)', rf"\1\2f{number}-\3", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = text.replace(_INK, "currentColor").replace("xlink:href", "href")
    text = re.sub("#12345([0-5])", r"var(--series-\1)", text)
    return Html(text.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1).strip())
