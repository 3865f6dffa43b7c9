"""tools/check_data.py --checkpoint: images whose label their neighbours do not have."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import devices, modules, terminal
from engine.checkpoint import find_checkpoint, write_atomically
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.errors import BadInput, shorten
from engine.report.grids import captioned_grid, save_png
from engine.report.outputs import csv_content
from engine.report.records import run_folder
from engine.text import drawable
from task.neighbours import doubtful

SHOWN = 48  # images on the sheet
SHEET, TABLE = "doubtful.png", "doubtful.csv"


def add_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="PATH", type=find_checkpoint,
        help="a checkpoint, or a run folder for its best.pt: its network finds labels "
        f"that are perhaps wrong, for {SHEET} and {TABLE} in the run folder",
    )  # fmt: skip


def look(opt: Namespace, folder: Path, model_class: Any, eval_set: Callable[..., Any]) -> list[str]:
    """Writes a sheet and a table of doubtful labels; returns a note that counts them.

    The images are those of training and validation.

    Args:
        opt: The options of tools/check_data.py.
        folder: The folder for `--data`.
        model_class: The model; its network makes features of images.
        eval_set: That of dataset.py.

    Raises:
        BadInput: The checkpoint is none, or one of other classes, or of a network without features.
    """
    if opt.checkpoint is None:
        return []
    model, trained_with = model_class.from_checkpoint(opt.checkpoint)
    trained_with = Namespace(**{**vars(trained_with), "data": str(folder)})
    sets = [eval_set(trained_with, model.info, split) for split in ("train", "val")]
    features, labels = map(torch.cat, zip(*(_features(model, one) for one in sets), strict=True))
    places = [(one, i) for one in sets for i in range(len(one))]
    names = [os.path.relpath(one.root / name, folder) for one in sets for name in one.names()]
    order, classes, shares = doubtful(features, labels, len(model.classes))
    if not len(order):
        return []
    run, known = run_folder(opt.checkpoint), model.classes
    rows = [("file", "label", "neighbours", "share_of_label", "share_of_neighbours")]
    for i, other, (own, most) in zip(
        order.tolist(), classes.tolist(), shares.tolist(), strict=True
    ):
        rows.append((names[i], known[labels[i]], known[other], f"{own:.3f}", f"{most:.3f}"))
    write_atomically(run / TABLE, lambda file: file.write(csv_content(rows)))
    shown = [places[i] for i in order[:SHOWN].tolist()]
    _save_sheet(run / SHEET, [one[i][0] for one, i in shown], rows[1 : len(shown) + 1])
    first = shorten([row[0] for row in rows[1:]], 3)
    return [
        f"{folder}: {len(order)} of {len(names)} images have another label than most of those that "
        f"look like them to {opt.checkpoint}: {first}; look at {run / SHEET}, and at {TABLE} for "
        "all, the most doubtful first"
    ]


def _save_sheet(path: Path, images: list[Tensor], rows: Sequence[tuple[str, ...]]) -> None:
    """Draws images (3, H, W), each with its label and that of its neighbours."""
    captions = [f"{drawable(row[1])}?\n{drawable(row[2])} ({float(row[4]):.0%})" for row in rows]
    draw = partial(captioned_grid, images, captions, columns=8, cell=110)
    if (picture := terminal.attempt(draw, SHEET)) is not None:
        save_png(picture, path)


@torch.no_grad()
def _features(model: Any, data_set: Any) -> tuple[Tensor, Tensor]:
    """The features of all images, float32 (N, D), and their labels, on the CPU."""
    amp = devices.Amp("auto", devices.pick_device("auto"))
    modules.to_device(model, amp.device, freeze=True).eval()
    network, features, labels = next(iter(model.networks().values())), [], []
    sampler = EvalBatchSampler(len(data_set), 128)
    loader = Loader(data_set, sampler, amp.device, None, 2)
    with loader, loader.batches() as batches, amp.autocast():
        for images, expected in terminal.bar(batches, total=sampler.count(), desc="features"):
            model.scores(images)
            if getattr(network, "frozen_features", None) is None:
                kind = type(network).__name__
                raise BadInput(f"--checkpoint: {kind} is not its last layer applied to vectors")
            features.append(network.frozen_features.float().cpu())
            labels.append(expected.cpu())
    return torch.cat(features), torch.cat(labels)
