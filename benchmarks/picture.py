"""The picture of the results: a panel of bars for each case of throughput, and one of scaling."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes  # type: ignore[import-not-found]
from matplotlib.figure import Figure as Canvas  # type: ignore[import-not-found]

from benchmarks.report import Figure, Results, figures, scaling_points

OURS, LIMIT, PEER = "#1f77b4", "#999999", "#e08214"
WIDTH, DPI = 8, 100  # 800 pixels
BAR, FRAME = 0.28, 1.1  # inches: a bar with its gap, and what is around the bars of a panel


def draw(results: Results, path: Path) -> bool:
    """Draws the picture; returns whether there was anything to draw."""
    panels = [
        (name, case, figures(case, "images_per_s"))
        for name, case in results.items()
        if case["kind"] == "throughput"
    ]
    panels = [(name, case, _drawable(have)) for name, case, have in panels if _drawable(have)]
    curves = [case for case in results.values() if case["kind"] == "scaling"]
    curves = [case for case in curves if any("error" not in p[2] for p in scaling_points(case))]
    heights = [BAR * len(have) + FRAME for _, _, have in panels] + [3.2] * len(curves)
    if not heights:
        path.unlink(missing_ok=True)  # that of earlier results
        return False
    canvas = Canvas((WIDTH, sum(heights)), DPI, layout="constrained")
    axes = canvas.subplots(len(heights), squeeze=False, height_ratios=heights)
    for axis, (name, case, have) in zip(axes[:, 0], panels, strict=False):
        _bars(axis, f"{name}: {case['about']}", have)
    for axis, case in zip(axes[len(panels) :, 0], curves, strict=True):
        _curves(axis, case)
    canvas.savefig(path)
    return True


def _drawable(have: dict[str, Figure]) -> dict[str, Figure]:
    return {name: one for name, one in have.items() if one.values}


def _bars(axis: Axes, title: str, have: dict[str, Figure]) -> None:
    names = sorted(have, key=lambda name: have[name].median)
    middles = [have[name].median for name in names]
    around = [
        [have[name].median - min(have[name].values) for name in names],
        [max(have[name].values) - have[name].median for name in names],
    ]
    axis.barh(names, middles, xerr=around, color=[_colour(name) for name in names], capsize=2)
    for y, name in enumerate(names):
        axis.text(max(have[name].values), y, f"  {middles[y]:,.0f}", va="center", fontsize=9)
    if "pure" in have:
        axis.axvline(have["pure"].median, color="black", linewidth=0.8, linestyle=":")
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel("images/s; dotted: the limit")
    axis.set_xlim(0, 1.15 * max(max(one.values) for one in have.values()))
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.spines[["top", "right"]].set_visible(False)


def _colour(name: str) -> str:
    return OURS if name.startswith("ours") else LIMIT if name.startswith("pure") else PEER


def _curves(axis: Axes, case: dict[str, Any]) -> None:
    points = [point for point in scaling_points(case) if "error" not in point[2]]
    for mode in dict.fromkeys(mode for _, mode, _ in points):
        chosen = [(listed, one) for listed, other, one in points if other == mode]
        images = [listed for listed, _ in chosen]
        (line,) = axis.loglog(
            images, [one["startup_s"] for _, one in chosen], "o--", label=f"start-up, {mode}"
        )
        epochs = [one["s_per_image"] * listed for listed, one in chosen]
        axis.loglog(images, epochs, "s-", color=line.get_color(), label=f"epoch, {mode}")
    axis.set_title("scaling: seconds against the number of listed images", fontsize=9, loc="left")
    axis.set_xlabel("images")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
