"""Predicts the class of images.

    python predict.py --checkpoint runs/a photo.jpg folder_of_photos
    find photos -name "*.jpg" | python predict.py --checkpoint runs/a --top 3 -

Prints the first predictions, and writes all to predictions.csv: file, class, probability; with
--top K also the next classes. `--out -` writes them to standard output. Images that cannot be read
are named at the end, with status 1.
"""

# ruff: noqa: E402
from engine.errors import begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

from functools import partial

import dataset
import options
from engine import terminal
from engine.arguments import Parser, add_predict_options, number
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.data.stored import trained_form
from engine.inference.exported import load_model
from engine.inference.predictions import ImageFiles
from model import Model
from task.tables import Predictions


def main() -> int:
    parser = Parser(description="Writes the class and its probability for each image.")
    add_predict_options(parser)
    add = parser.add_argument
    add("--top", type=number(int, 1), metavar="K", default=1, help="write the K best classes")
    add("--out", metavar="FILE", default="predictions.csv", help="where to write")
    add("--batch-size", type=number(int, 1), default=128, help="images in a batch")
    opt = parser.parse_args()
    terminal.be_quiet(opt.quiet)

    model = load_model(opt, Model, options.make_parser())
    table = Predictions(opt.out, model.output["classes"], opt.top)
    terminal.be_quiet(opt.quiet, aside=table.out.is_stdout)
    form = trained_form(model.output)
    load = partial(dataset.load_eval, opt=model.options)
    load = partial(load, like=form) if form else load  # one of your own need not take it
    images = ImageFiles(opt.paths, load, model.output["image_size"], form)
    sampler = EvalBatchSampler(len(images), opt.batch_size)
    loader = Loader(images, sampler, model.amp.device, opt.workers, opt.prefetch)
    with loader, loader.batches() as batches, model.amp.autocast():
        for batch, readable in terminal.bar(batches, total=sampler.count(), desc="predict"):
            table.add(images.files, model.predict(batch), readable)
    return images.finish(table.readable, opt.out, table.write)


if __name__ == "__main__":
    run_program(main)
