"""What test.py finds: calibration, mistakes, and how they look in files and on the page."""

import csv
import io
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import write_atomically
from engine.report.common import Report, compare_images, drawn, percent, share_interval
from engine.report.figures import draw_chart
from engine.report.grids import WIDTH, as_rgb, captioned_grid, draw_counts
from engine.report.outputs import csv_content
from engine.report.page import Html, element, image, section, table, tiles
from engine.report.records import is_number, read_metrics
from engine.terminal import say
from engine.text import drawable
from task.classes import count_confusion

PART = 4096  # images at a time, since the scores of a large set fill the memory as they are
BINS = 15  # of the confidence, as in Guo et al. 2017
MOST_CONFUSED = 20  # pairs of classes on the page
MATRIX = "row: true class, column: predicted class"
CONFUSION = 4000  # pixels of the cells in confusion.png, which leave 250 classes their names
SHOWN = 14  # images of a kind on the page


@dataclass
class Results:
    """What the network says about each image."""

    scores: Tensor  # (N, K)
    labels: Tensor  # int64 (N,)
    files: list[str]  # relative to the folder of the split
    classes: list[str]  # the K names

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the predicted class, float64 (N,)."""
        parts = self.scores.split(PART)
        return torch.cat([part.double().softmax(dim=1).amax(dim=1) for part in parts])

    @cached_property
    def predicted(self) -> Tensor:
        """The class with the highest score, int64 (N,)."""
        return self.scores.argmax(dim=1)

    @cached_property
    def right(self) -> Tensor:
        """Whether each image is classified correctly, bool (N,)."""
        return self.predicted == self.labels

    @cached_property
    def matrix(self) -> Tensor:
        """The confusion matrix: counts (K, K), row = true class, column = predicted class."""
        return count_confusion(self.scores, self.labels)

    def by_class(self) -> dict[str, Tensor]:
        """Precision, recall and F1 of each class, (K,) each; NaN of a class without images.

        The precision of a class that was never predicted is 0.
        """
        right, of_class, taken = self.matrix.diag(), self.matrix.sum(dim=1), self.matrix.sum(dim=0)
        absent = torch.where(of_class == 0, torch.nan, 1.0)
        return {
            "precision": right / taken.clamp(min=1) * absent,
            "recall": right / of_class.clamp(min=1) * absent,
            "f1": 2 * right / (taken + of_class).clamp(min=1) * absent,
        }

    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (see `share_interval`)."""
        return share_interval(int(self.right.sum()), len(self.right))

    def calibration(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean confidence, accuracy, number of images of each bin of confidence: (BINS,) each."""
        bins = (self.confidence * BINS).long().clamp(max=BINS - 1)
        counts = torch.bincount(bins, minlength=BINS)
        sure = torch.bincount(bins, self.confidence, BINS) / counts.clamp(min=1)
        return sure, torch.bincount(bins, self.right.double(), BINS) / counts.clamp(min=1), counts

    def calibration_error(self) -> float:
        """The expected calibration error, in [0, 1]: how far confidence and accuracy differ."""
        confidence, accuracy, counts = self.calibration()
        return float(((confidence - accuracy).abs() * counts).sum() / counts.sum())

    def worst_mistakes(self) -> list[int]:
        """The mistakes, those first whose true class got the least probability."""
        parts = zip(self.scores.split(PART), self.labels.split(PART), strict=True)
        truth = [scores.log_softmax(1).gather(1, labels[:, None]) for scores, labels in parts]
        order = torch.cat(truth)[:, 0].argsort(stable=True)
        return order[~self.right[order]].tolist()

    def most_confident(self, right: bool) -> list[int]:
        """The images that are classified correctly, or the mistakes; the most certain first."""
        order = self.confidence.argsort(descending=True, stable=True)
        return order[self.right[order] == right].tolist()

    def describe(self, i: int) -> str:
        """The classes of an image as a caption of one or two lines."""
        label, predicted = (drawable(self.classes[k]) for k in (self.labels[i], self.predicted[i]))
        sure = f"({float(self.confidence[i]):.0%})"
        return f"{label} {sure}" if self.right[i] else f"{label}, taken for\n{predicted} {sure}"


def write_report(
    report: Report, metrics: dict[str, Any], results: Results, test_set: Any, worst: int, loss: str
) -> None:
    """Writes predictions.csv, confusion.png, mistakes.png and index.html.

    Args:
        report: The report.
        metrics: As in metrics.json.
        results: What they come from.
        test_set: Its images, for those that are shown.
        worst: Mistakes in mistakes.png.
        loss: The name of the loss in metrics.jsonl.
    """
    save_predictions(results, report.folder / "predictions.csv")

    def sheet() -> Tensor:
        mistakes = results.worst_mistakes()[:worst]
        captions = [results.describe(i) for i in mistakes]
        shown = [as_rgb(test_set[i][0]) for i in mistakes]
        return captioned_grid(shown, captions, columns=6, cell=150)

    matrix = partial(draw_counts, results.matrix, results.classes, MATRIX)
    report.save_picture("confusion.png", partial(matrix, most=CONFUSION))
    report.save_picture("mistakes.png", sheet)
    sections = [
        *_images_sections(results, test_set),
        _classes_section(metrics),
        *_confusion_sections(results, matrix),
        _calibration_section(results),
    ]
    verdict = _verdict(metrics, results)
    if first := [start["features"] for start in report.records.starts if "features" in start]:
        verdict.append(element("p", f"Without a training, on the same features: {first[-1]}."))
    verdict += _against(report, results) if report.against else []
    report.write(verdict, sections, pairs={"loss": loss})


def dash(value: float | None, show: Callable[[float], str]) -> str:
    """A share as `show` writes it; a dash for that of a class without images, None."""
    return "-" if value is None else show(value)


def save_predictions(results: Results, path: Path) -> None:
    """Writes a line for each image: its file, its class, the predicted class, its probability."""
    names = results.classes
    columns = (results.labels.tolist(), results.predicted.tolist(), results.confidence.tolist())
    rows = [
        (file, names[label], names[guess], f"{sure:.6f}")
        for file, label, guess, sure in zip(results.files, *columns, strict=True)
    ]
    content = csv_content([("file", "class", "predicted", "probability"), *rows])
    write_atomically(path, lambda file: file.write(content))


def read_right(path: Path) -> dict[str, float]:
    """Whether each image of a predictions.csv is classified correctly, as 0 or 1, by its file."""
    text = os.fsdecode(path.read_bytes()) if path.is_file() else ""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    with suppress(csv.Error):  # it was written by another program
        return {r.get("file", ""): float(r.get("class") == r.get("predicted")) for r in rows}
    return {}


def _verdict(metrics: dict[str, Any], results: Results) -> list[Html]:
    n, (low, high) = metrics["images"], metrics["accuracy_interval"]
    counts = results.matrix.sum(dim=1)
    usual, share = results.classes[int(counts.argmax())], float(counts.max() / n)
    better = "Better than" if low > share else "Not clearly better than"
    sentence = f"{better} always answering {usual}, which is right for {percent(share)}."
    doubt = f"95 % interval {percent(low)} to {percent(high)} (Clopper and Pearson)."
    facts = {
        "mistakes": f"{int((~results.right).sum())} of {n}",
        "macro F1": percent(metrics["macro_f1"]),
        "calibration error (ECE)": percent(metrics["calibration_error"]),
        "loss": f"{metrics['loss']:.4f}",
    }
    return [
        element("strong", percent(metrics["accuracy"])),
        element("p", f"of {n} images are classified correctly. {doubt}"),
        element("p", sentence),
        tiles(facts),
    ]


def _against(report: Report, results: Results) -> list[Html]:
    assert report.against is not None
    accuracy = read_metrics(report.against).get("accuracy")
    ours = dict(zip(results.files, results.right.double().tolist(), strict=True))
    theirs = read_right(report.against / "predictions.csv")
    shown = percent(accuracy) if is_number(accuracy) else "-"
    title = f"Against {report.opt.against} ({shown})"
    found = compare_images(ours, theirs, "percentage points", scale=100)
    say(f"{title}: {found}")
    return [element("h3", title), element("p", found)]


def _images_sections(results: Results, test_set: Any) -> list[Html]:
    """Most confident mistakes, other bad ones, and the best; an image stands in one of them."""
    sure = results.most_confident(right=False)[:SHOWN]
    others = [i for i in results.worst_mistakes() if i not in sure][:SHOWN]
    kinds = {
        "Most confident mistakes": sure,
        "Other mistakes, the least probable true class first": others,
        "Correct, the most certain first": results.most_confident(right=True)[: SHOWN // 2],
    }

    def show(i: int) -> Html:
        file = results.files[i]
        caption = f"{results.describe(i)}\n{drawable(file)}"
        def draw() -> Html:
            return image(as_rgb(test_set[i][0].cpu()).to(torch.uint8), caption, alt=file)

        return drawn(draw, "images of the page")

    return [
        section(title, element("div", *map(show, chosen), class_="images"))
        for title, chosen in kinds.items()
        if chosen
    ]


def _classes_section(metrics: dict[str, Any]) -> Html:
    rows = []
    for name, row in metrics["classes"].items():
        shares = [dash(row[share], percent) for share in ("precision", "recall", "f1")]
        mistakes = round(row["images"] * (1 - (row["recall"] or 0)))
        rows.append((name, row["images"], mistakes, *shares))
    rows.sort(key=lambda row: -row[2])
    head = ("class", "images", "mistakes", "precision", "recall", "F1")
    return section("Classes, the most mistakes first", table(head, rows, class_="numbers"))


def _confusion_sections(results: Results, draw: Callable[[], Tensor]) -> list[Html]:
    mistakes, k = results.matrix - results.matrix.diag().diag(), len(results.classes)
    counts, places = mistakes.flatten().topk(min(MOST_CONFUSED, k * k))
    found = zip(counts.tolist(), places.tolist(), strict=True)
    pairs = [(results.classes[p // k], results.classes[p % k], n) for n, p in found if n]
    what = "confusion matrix"
    shown = drawn(lambda: image(draw(), "A shade is the share of its row.", what, most=WIDTH), what)
    return [
        section("Confusion matrix", element("div", shown, class_="batch")),
        section("Most confused classes", table(("class", "taken for", "images"), pairs)),
    ]


def _calibration_section(results: Results) -> Html:
    confidence, accuracy, counts = results.calibration()
    filled = counts > 0
    note = (
        f"Calibration error {percent(results.calibration_error())} over {BINS} bins: the accuracy "
        "of the images whose prediction has such a probability, over its mean. Below the diagonal "
        "the network is too sure of itself."
    )
    lines = [(confidence[filled].tolist(), accuracy[filled].tolist()), ([0, 1], [0, 1])]
    draw = partial(draw_chart, lines, "accuracy over confidence, against the diagonal")
    chart = element("figure", drawn(draw, "calibration"))
    return section("Calibration", element("div", chart, class_="charts"), note=note)
