"""Says what images show.

    python predict.py --checkpoint runs/a/checkpoints/best.pt photo.jpg folder_of_photos

Writes predictions.csv: file, class, probability.
"""

import engine.interrupt  # noqa: F401  first, so that Ctrl-C ends in one line from here on

# isort: split
import csv
import io
import os
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import data
from classifier import Classifier
from engine import devices
from engine.arguments import Parser, add_machine_options, add_predict_options, number
from engine.checkpoint import write_atomically
from engine.errors import DONE, BadInput, run_program
from engine.loading import Loader
from engine.order import TestOrder
from engine.precision import Precision
from images import ImageFiles


@torch.no_grad()
def main() -> int:
    parser = Parser(description="Writes the class and its probability for each image.")
    add_predict_options(parser)
    add = parser.add_argument
    add("--out", metavar="FILE", default="predictions.csv", help="where to write")
    add("--batch-size", type=number(int, 1), default=128, help="images in a batch")
    add_machine_options(parser)
    opt = parser.parse_args()

    out = Path(opt.out).resolve()
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise BadInput(f"--out {opt.out}: not a file in a folder that exists; name another")
    device = devices.pick_device(opt.device)
    precision = Precision(opt.precision, device)
    model, trained_with = Classifier.from_checkpoint(opt.checkpoint)
    devices.place(model, device)
    images = ImageFiles(opt.paths, partial(data.load, opt=trained_with))
    order = TestOrder(len(images), opt.batch_size)
    loader = Loader(images, order, device, opt.workers, opt.prefetch)

    rows: list[tuple[str, str, str]] = []
    with loader.batches() as batches, precision.autocast():
        for (batch,) in tqdm(batches, total=len(order), desc="predict", disable=None):
            probabilities, labels = model.scores(batch).softmax(dim=1).max(dim=1)
            for probability, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
                file = images.files[len(rows)]
                rows.append((file, model.classes[label], f"{probability:.6f}"))

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("file", "class", "probability"), *rows])
    write_atomically(out, lambda file: file.write(os.fsencode(text.getvalue())))
    print(f"wrote {opt.out}: {len(rows)} images")
    return DONE


if __name__ == "__main__":
    run_program(main)
