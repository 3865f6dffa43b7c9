"""What tools.folds shows of the networks of all folds: the metrics of each image."""

from pathlib import Path
from typing import Any

from engine.checkpoint import write_atomically
from engine.data.splits import check_folds
from engine.report.outputs import csv_content
from engine.report.page import Html, section, table
from engine.report.records import read_metrics

SHOWN = 100  # images in the table of the page


def write_tables(folder: Path, runs: list[Path]) -> list[Html]:
    """Writes images.csv, the metrics of each image by the network that was not trained on it.

    Returns a section of the page with the worst images. BadInput: as check_folds.
    """
    found: list[dict[str, Any]] = []
    for run in runs:
        found += read_metrics(run / "report-val").get("by_image", [])
    check_folds([row["file"] for row in found])
    found.sort(key=lambda row: (row["psnr"], row["file"]))
    head = list(found[0])
    rows = [[row["file"], *(f"{row[name]:.4f}" for name in head[1:])] for row in found]
    content = csv_content([head, *sorted(rows)])
    write_atomically(folder / "images.csv", lambda file: file.write(content))
    shown = table(head, rows[:SHOWN], class_="numbers")
    return [section("Images, the lowest PSNR first", shown, note="images.csv has all images.")]
