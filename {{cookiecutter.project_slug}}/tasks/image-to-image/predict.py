"""Turns images into images.

    python predict.py --checkpoint runs/a photo.jpg folder_of_photos
    find photos -name "*.jpg" | python predict.py --checkpoint runs/a -

Writes a PNG of the same name for each image, in folders as below the one that all images share, or
a TIFF if PNG has no such depth or channels;
images that differ in the ending alone keep it (x.jpg.png). They are not degraded: the inputs of a
network that removes noise should be noisy. After low-resolution they are enlarged first. Those that
cannot be read are named at the end, with status 1.
"""

# ruff: noqa: E402
from engine.errors import begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

from argparse import Namespace
from functools import partial
from pathlib import Path

from torch import Tensor

import dataset
import options
from engine import terminal
from engine.arguments import Parser, add_predict_options, number
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.data.stored import Form, to_depth, trained_form
from engine.inference.exported import load_model
from engine.inference.predictions import ImageFiles
from model import Model
from task.degradations import enlarge
from task.depth import scale_of
from task.outputs import ending_of, name_outputs, save_output
from task.tiles import InTiles, add_tile_options, check_tiles


def main() -> int:
    parser = Parser(description="Writes the output of the network for each image.")
    add_predict_options(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", default="predictions", help="where to write")
    scale = "enlarge inputs N times first (default: as in training on low-resolution, else 1)"
    add("--scale", type=number(float, 1, 100), metavar="N", help=scale)
    add_tile_options(parser)
    opt = parser.parse_args()
    terminal.be_quiet(opt.quiet)

    check_tiles(opt)
    model = load_model(opt, Model, options.make_parser())
    if opt.scale is None:
        opt.scale = model.options.scale if model.options.degrade == "low-resolution" else 1
    values = scale_of(model.output)
    load = partial(load_enlarged, scale=opt.scale, opt=model.options, form=values.form)
    images = ImageFiles(opt.paths, load, form=trained_form(model.output))
    ending = ending_of(values.form)
    outputs = name_outputs(opt.paths, images.files[:], Path(opt.out), ending)
    sampler = EvalBatchSampler(len(images), 1)  # images of any size cannot share a batch
    loader = Loader(images, sampler, model.amp.device, opt.workers, opt.prefetch)
    predict = InTiles(model.predict, opt, values)

    could: list[bool] = []
    with loader, loader.batches() as batches, model.amp.autocast():
        paths = terminal.bar(outputs, desc="predict")
        for file, path, (batch, readable) in zip(images.files, paths, batches, strict=True):
            could += readable.tolist()
            if could[-1]:
                output = to_depth(predict(batch[0], file), values.form.depth)
                save_output(output.cpu(), path, values.form.depth)
    predict.warn()
    return images.finish(could, opt.out)


def load_enlarged(path: str, scale: float, opt: Namespace, form: Form) -> Tensor:
    """Reads an image of a form and enlarges it `scale` times: (C, H, W)."""
    image = dataset.load_eval(path, opt, form)
    return image if scale == 1 else enlarge(image, scale, form.depth)


if __name__ == "__main__":
    run_program(main)
