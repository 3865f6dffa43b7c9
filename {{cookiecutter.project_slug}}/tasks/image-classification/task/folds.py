"""What tools.folds shows of the networks of all folds: predictions, and labels to doubt."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dataset
from engine import devices, modules
from engine.checkpoint import write_atomically
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.data.splits import check_folds
from engine.report.common import drawn, percent
from engine.report.outputs import csv_content
from engine.report.page import Html, element, image, section, table
from engine.terminal import bar, say
from engine.text import drawable
from model import Model
from task.tables import columns

TOP = 5  # classes of each image in predictions.csv
SHOWN = 28  # images on the page
LISTED = 100  # in its table


@dataclass
class Judged:
    """An image, and what the network says that was trained without it."""

    file: str  # its path, as predict.py would write it
    label: str
    own: float  # the probability of the label
    best: list[tuple[str, float]]  # the most probable classes
    data_set: Any
    index: int  # in it

    def cells(self) -> list[str]:
        """The row in doubtful.csv."""
        (name, sure), *_ = self.best
        return [self.file, self.label, f"{self.own:.6f}", name, f"{sure:.6f}"]


def write_tables(folder: Path, runs: list[Path]) -> list[Html]:
    """Writes predictions.csv, as predict.py does, and doubtful.csv; returns sections of the page.

    Both have a row for each image of train/. In doubtful.csv those come first whose own label got
    the least probability: column 3 has that, columns 4 and 5 the class that got most.

    Raises:
        BadInput: As check_folds of engine.data.splits.
    """
    judged = [one for run in runs for one in judge(run)]
    check_folds([one.file for one in judged])
    judged.sort(key=lambda one: one.file)
    top = max(len(one.best) for one in judged)
    rows = [[one.file, *(cell for n, p in one.best for cell in (n, f"{p:.6f}"))] for one in judged]
    write(folder / "predictions.csv", [columns(top), *rows])
    judged.sort(key=lambda one: one.own)
    head = ["file", "label", "label_probability", "class", "probability"]
    write(folder / "doubtful.csv", [head, *(one.cells() for one in judged)])
    say(f"wrote predictions.csv and doubtful.csv to {folder}")
    wrong = [one for one in judged if one.best[0][0] != one.label]
    return [
        section(
            "Doubtful labels",
            element("div", *map(show, wrong[:SHOWN]), class_="images"),
            table(head, (one.cells() for one in wrong[:LISTED]), class_="numbers"),
            note=f"{len(wrong)} of {len(judged)} images are classified otherwise than their label "
            "says; those whose own label got the least probability come first. Look whether they "
            "are mislabelled. doubtful.csv has all images.",
        )
    ]


def write(path: Path, rows: list[list[str]]) -> None:
    content = csv_content(rows)
    write_atomically(path, lambda file: file.write(content))


def show(one: Judged) -> Html:
    name, sure = one.best[0]
    caption = (
        f"{drawable(one.label)} ({percent(one.own)}), taken for\n"
        f"{drawable(name)} ({percent(sure)})\n{drawable(one.file)}"
    )
    picture = one.data_set[one.index][0].cpu()
    return drawn(lambda: image(picture, caption, alt=one.file), "images of the page")


@torch.no_grad()
def judge(run: Path) -> list[Judged]:
    """What the best network of a run says of the images that it was validated on."""
    model, opt = Model.from_checkpoint(str(run / "checkpoints" / "best.pt"))
    device = devices.pick_device(opt.device)
    amp = devices.Amp(opt.precision, device)
    model = modules.to_device(model, device).eval()
    data_set = dataset.eval_set(opt, model.info, "val")
    files = [os.path.join(getattr(data_set, "root", ""), name) for name in data_set.names()]
    sampler, found = EvalBatchSampler(len(data_set), 128), list[Judged]()
    loader = Loader(data_set, sampler, device, opt.workers, opt.prefetch)
    with loader, loader.batches() as batches, amp.autocast():
        for images, labels in bar(batches, total=sampler.count(), desc=run.name):
            shares = model.predict(images).float().cpu()
            for probabilities, label in zip(shares, labels.tolist(), strict=True):
                values, order = probabilities.topk(min(TOP, len(model.classes)))
                best = [(model.classes[k], p) for k, p in zip(order, values.tolist(), strict=True)]
                name, own, i = model.classes[label], float(probabilities[label]), len(found)
                found.append(Judged(files[i], name, own, best, data_set, i))
    return found
