"""How the results of test.py look: sheets of examples, and their part of the page."""

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from engine.report.common import Report, compare_images, drawn, interval, no_interval
from engine.report.grids import captioned_grid
from engine.report.page import Html, element, image, section, table, tiles
from engine.report.records import is_number, read_metrics
from engine.terminal import say
from engine.text import drawable
from task.tiles import LIMIT

TILES = {"ssim": ("SSIM", 4), "l1": ("L1, grey levels", 2)}  # names and digits below the verdict
MOST_ROWS = 200  # of the table of images
MOST_EXAMPLES = 6  # of the best, and of the worst; their crops are most of the page's size
CROP = 224  # pixels of a crop, which smaller ones are enlarged to in a sheet
Row = dict[str, str | float]  # the metrics of an image
Example = tuple[Row, list[Tensor]]  # and crops of its input, output and target


def write_report(
    report: Report, metrics: dict[str, Any], best: list[Example], worst: list[Example]
) -> None:
    """Writes best.png, worst.png and index.html.

    Args:
        report: The report.
        metrics: As in metrics.json.
        best: The examples with the highest PSNR, the best one first.
        worst: Those with the lowest, the worst one first.
    """
    report.save_picture("best.png", partial(draw_examples, best))
    report.save_picture("worst.png", partial(draw_examples, worst))
    verdict = _verdict(metrics)
    if report.against is not None:
        verdict += _against(report, metrics)
    sections = [
        _examples_section("Worst outputs", worst[:MOST_EXAMPLES]),
        _examples_section("Best outputs", best[:MOST_EXAMPLES]),
        _images_section(metrics),
    ]
    report.write(verdict, sections, pairs={})


def draw_examples(examples: list[Example]) -> Tensor:
    """A sheet with a row of input, output and target for each example: uint8 (3, H, W)."""
    names = [drawable(row["file"]) for row, _ in examples for _ in range(3)]
    texts = [text for row, _ in examples for text in _captions(row)]
    captions = [f"{name}\n{text}" for name, text in zip(names, texts, strict=True)]
    images = [image for _, triple in examples for image in triple]
    return captioned_grid(images, captions, columns=3, cell=CROP)


def add_intervals(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics, and the 95 % interval of each mean (see `interval`)."""
    rows = metrics["by_image"]
    columns = {name: np.array([row[name] for row in rows]) for name in ("psnr", *TILES)}
    columns["psnr_gain"] = columns["psnr"] - np.array([row["input_psnr"] for row in rows])
    intervals = {f"{name}_interval": interval(values) for name, values in columns.items()}
    return {**metrics, **intervals}


def _captions(row: Row) -> list[str]:
    shown = [
        f"{name}: {row[prefix + 'psnr']:.2f} dB, SSIM {row[prefix + 'ssim']:.3f}"
        for prefix, name in (("input_", "input"), ("", "output"))
    ]
    return [*shown, "target"]


def _verdict(metrics: dict[str, Any]) -> list[Html]:
    ends, rows = metrics["psnr_interval"], metrics["by_image"]
    doubt = no_interval(len(rows)) if ends is None else _ends(ends, 2, " dB")
    facts = {}
    for name, (title, digits) in TILES.items():
        of_input = f"input {metrics[f'input_{name}']:.{digits}f}"
        if (its := metrics[f"{name}_interval"]) is not None:
            of_input = f"{_ends(its, digits)}, {of_input}"
        small = element("div", of_input, class_="soft small")
        facts[title] = Html(element("div", f"{metrics[name]:.{digits}f}") + small)
    better = sum(row["psnr"] > row["input_psnr"] for row in rows)
    compared = f"{better} of {len(rows)} outputs are better than their inputs"
    gain = f"{metrics['psnr_gain']:+.2f} dB on average"
    if (its := metrics["psnr_gain_interval"]) is not None:
        gain += f", {_ends(its, 2)}"
    of_input = f"{metrics['input_psnr']:.2f} dB"
    differ = metrics.get("tiles_differ_by", 0)
    if differ > LIMIT:
        compared = f"Tiles differ by up to {differ:.0f} grey levels where they meet. {compared}"
    return [
        element("strong", f"{metrics['psnr']:.2f} dB"),
        element("p", f"PSNR, the mean of {len(rows)} images: {doubt}."),
        element("p", f"{compared} ({of_input}): {gain}."),
        tiles(facts),
    ]


def _ends(ends: tuple[float, float], digits: int, unit: str = "") -> str:
    return f"95 % interval {ends[0]:.{digits}f} to {ends[1]:.{digits}f}{unit}"


def _against(report: Report, metrics: dict[str, Any]) -> list[Html]:
    assert report.against is not None
    other = read_metrics(report.against)
    their_rows = other.get("by_image")
    ours, theirs = (
        {
            str(row.get("file")): row["psnr"]
            for row in rows
            if isinstance(row, dict) and is_number(row.get("psnr"))
        }
        for rows in (metrics["by_image"], their_rows if isinstance(their_rows, list) else [])
    )
    shown = f"{other['psnr']:.2f} dB" if is_number(other.get("psnr")) else "-"
    title = f"Against {report.opt.against} ({shown})"
    found = compare_images(ours, theirs, "dB PSNR")
    say(f"{title}: {found}")
    return [element("h3", title), element("p", found)]


def _examples_section(title: str, examples: list[Example]) -> Html:
    """Examples in rows of input, output and target; crops of the middle, as in the sheets."""
    rows = []
    for row, triple in examples:
        shown = []
        for crop, caption in zip(triple, _captions(row), strict=True):
            alt = f"{row['file']}, {caption.partition(':')[0]}"
            shown.append(drawn(partial(image, crop, caption, alt, most=CROP), "images of the page"))
        rows += [element("h3", row["file"]), element("div", *shown, class_="triple")]
    note = "Crops of the middle; packed as JPEG here, and without loss in the PNG of the report."
    return section(title, element("p", note, class_="soft"), *rows)


def _images_section(metrics: dict[str, Any]) -> Html:
    ordered = sorted(metrics["by_image"], key=lambda row: row["psnr"])
    digits = {"input_psnr": 2, "psnr": 2, "input_ssim": 4, "ssim": 4, "l1": 2}
    rows = [
        (row["file"], *(f"{row[name]:.{count}f}" for name, count in digits.items()))
        for row in ordered[:MOST_ROWS]
    ]
    head = ("image", "PSNR of input, dB", "PSNR, dB", "SSIM of input", "SSIM", "L1, grey levels")
    left = len(ordered) - len(rows)
    more = f"; {left} more images are in metrics.json" if left else ""
    note = element("p", f"The lowest PSNR first{more}.", class_="soft")
    return section("Images", note, table(head, rows, class_="numbers"))
