"""Predicts the class of images.

    python predict.py --checkpoint runs/a photo.jpg folder_of_photos

Prints the first predictions, and writes all to predictions.csv: file, class, probability.
"""

from engine.errors import DONE, BadInput, run_program  # first: Ctrl-C ends in one line

# isort: split
import csv
import io
import os
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import dataset
from engine import modules
from engine.arguments import Parser, add_machine_options, add_predict_options, number
from engine.checkpoint import write_atomically
from engine.devices import Amp, pick_device
from engine.images import ImageFiles
from engine.loader import Loader
from engine.sampler import EvalBatchSampler
from model import Model

SHOWN = 10  # predictions that are printed


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
    device = pick_device(opt.device)
    amp = Amp(opt.precision, device)
    model, trained_with = Model.from_checkpoint(opt.checkpoint)
    modules.place(model, device).eval()
    images = ImageFiles(opt.paths, partial(dataset.load_to_judge, opt=trained_with))
    sampler = EvalBatchSampler(len(images), opt.batch_size)
    loader = Loader(images, sampler, device, opt.workers, opt.prefetch)

    rows: list[tuple[str, str, str]] = []
    with loader, loader.batches() as batches, amp.autocast():
        for (batch,) in tqdm(batches, total=sampler.count(), desc="predict", disable=None):
            probabilities, labels = model.scores(batch).softmax(dim=1).max(dim=1)
            for probability, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
                file = images.files[len(rows)]
                rows.append((file, model.classes[label], f"{probability:.6f}"))

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("file", "class", "probability"), *rows])
    write_atomically(out, lambda file: file.write(os.fsencode(text.getvalue())))
    for file, name, probability in rows[:SHOWN]:
        print(f"{file}: {name} ({float(probability):.0%})")
    print(f"wrote {opt.out}: {len(rows)} image{'s' * (len(rows) > 1)}")
    return DONE


if __name__ == "__main__":
    run_program(main)
