"""The picture of the results: for each case the first column of its table as bars."""

from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from benchmarks.report import COLUMNS, Results, number, values

COLOURS = {"ours": "#1f77b4", "pure": "#999999"}  # by the first word of the name
OTHERS = "#e08214"
WIDTH, BAR, FRAME = 8.0, 0.28, 1.1  # inches: of the picture, of a bar, around the bars of a case


def draw(results: Results, path: Path) -> None:
    """Writes the picture as PNG."""
    heights = [FRAME + BAR * len(case["contenders"]) for case in results.values()]
    figure = Figure((WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, case) in zip(axes, results.items(), strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
        measured = {key for one in case["measurements"] for key in one}
        key = next((key for key in COLUMNS if key in measured), "seconds")
        axis.set_title(f"{title}: {COLUMNS[key]}", fontsize=10, loc="left")
        for name in reversed(case["contenders"]):
            found = values(case, name, key) or [0.0]
            middle, colour = median(found), COLOURS.get(name.split("-")[0], OTHERS)
            around = [[middle - min(found)], [max(found) - middle]]
            (bar,) = axis.barh(name, middle, xerr=around, color=colour, capsize=2)
            place = (max(found), bar.get_y() + bar.get_height() / 2)
            axis.annotate(f"  {number(middle)}", place, va="center", fontsize=9)
    figure.savefig(path)
