"""Figures for reports, drawn by matplotlib without a display."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor


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
    figure.savefig(path, dpi=120)


def shorten_text(text: str, most: int) -> str:
    """`text`, cut off after `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
