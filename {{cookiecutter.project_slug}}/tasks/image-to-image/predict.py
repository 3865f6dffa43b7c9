"""Turns images into images.

    python predict.py --checkpoint runs/a photo.jpg folder_of_photos
    find photos -name "*.jpg" | python predict.py --checkpoint runs/a -

Writes a PNG of the same name for each image, and keeps the folders below a folder. Images are not
degraded: the inputs of a network that removes noise should be noisy. After low-resolution they are
enlarged first. Those that cannot be read are named at the end, with status 1.
"""

# ruff: noqa: E402
from engine.errors import BadInput, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

from functools import partial
from itertools import chain, count
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

import dataset
import options
from engine import terminal
from engine.arguments import Parser, add_predict_options, number
from engine.checkpoint import write_atomically
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.inference.exported import load_model
from engine.inference.predictions import ImageFiles, end
from model import Model
from task.degradations import enlarge
from task.tiles import add_tile_options, apply_in_tiles, check_tiles


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

    check_tiles(opt.tile, opt.overlap)
    model = load_model(opt, Model, options.make_parser())
    if opt.scale is None:
        opt.scale = model.options.scale if model.options.degrade == "low-resolution" else 1
    images = ImageFiles(opt.paths, partial(load_enlarged, scale=opt.scale))
    outputs = name_outputs(opt.paths, images.files[:], Path(opt.out))
    sampler = EvalBatchSampler(len(images), 1)  # images of any size cannot share a batch
    loader = Loader(images, sampler, model.amp.device, opt.workers, opt.prefetch)

    def translate(inputs: Tensor) -> Tensor:
        return model.predict(inputs).round().to(torch.uint8)

    could: list[bool] = []
    with loader, loader.batches() as batches, model.amp.autocast():
        paths = terminal.bar(outputs, desc="predict")
        for path, (batch, readable) in zip(paths, batches, strict=True):
            could += readable.tolist()
            if not could[-1]:
                continue
            output = apply_in_tiles(translate, batch[0], opt.tile, opt.overlap)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(to_pil_image(output.cpu()).save, format="PNG"))
    return end(images, could, opt.out)


def load_enlarged(path: str, scale: float) -> Tensor:
    """Reads an image and enlarges it `scale` times: uint8 (3, H, W)."""
    image = dataset.load(path)
    return image if scale == 1 else enlarge(image, scale)


def name_outputs(paths: list[str], inputs: list[str], out: Path) -> list[Path]:
    """A file in `out` for each input: below a folder of `paths` where it is in that, as PNG.

    A name that is taken gets the input's own ending before the new one, or else a number.

    Raises:
        BadInput: `out` is a file, or one of them is an input, which would be lost.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: is a file; name a folder")
    folders = [Path(path) for path in paths if Path(path).is_dir()]
    taken: set[str] = set()
    outputs = []
    for path in map(Path, inputs):
        above = next((folder for folder in folders if path.is_relative_to(folder)), path.parent)
        names = chain([path.stem, path.name], (f"{path.stem}-{n}" for n in count(2)))
        places = (path.relative_to(above).with_name(f"{name}.png") for name in names)
        # a.png and A.png are one file on some disks.
        place = next(place for place in places if str(place).lower() not in taken)
        taken.add(str(place).lower())
        outputs.append(out / place)
    originals = {Path(path).resolve() for path in inputs}
    if lost := [path for path in outputs if path.resolve() in originals]:
        raise BadInput(f"--out {out}: {lost[0]} would be overwritten; name another folder")
    return outputs


if __name__ == "__main__":
    run_program(main)
