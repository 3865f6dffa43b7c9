"""Turns images into images.

    python predict.py --checkpoint runs/a/checkpoints/best.pt photo.jpg folder_of_photos

Writes a PNG for each image, of the same name and size. Images are taken as they are: for a network
that removes noise, they should be noisy.
"""

import engine.interrupt  # noqa: F401  first, so that Ctrl-C ends in one line from here on

# isort: split
from functools import partial
from pathlib import Path

from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

import data
from engine import devices
from engine.arguments import Parser, add_machine_options, add_predict_options
from engine.checkpoint import write_atomically
from engine.errors import DONE, BadInput, run_program
from engine.loading import Loader
from engine.order import TestOrder
from engine.precision import Precision
from images import ImageFiles
from tiles import add_tile_options, check_tiles, in_tiles
from translator import Translator


def main() -> int:
    parser = Parser(description="Writes what the network makes of each image.")
    add_predict_options(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", default="predictions", help="where to write")
    add_tile_options(parser)
    add_machine_options(parser)
    opt = parser.parse_args()

    check_tiles(opt.tile, opt.overlap)
    images = ImageFiles(opt.paths, data.load)
    outputs = name_outputs(images.files[:], Path(opt.out))
    device = devices.pick_device(opt.device)
    precision = Precision(opt.precision, device)
    model, _ = Translator.from_checkpoint(opt.checkpoint)
    devices.place(model, device)
    order = TestOrder(len(images), 1)  # images of any size cannot share a batch
    loader = Loader(images, order, device, opt.workers, opt.prefetch)

    with loader.batches() as batches, precision.autocast():
        names = tqdm(outputs, desc="predict", disable=None)
        for path, (batch,) in zip(names, batches, strict=True):
            drawn = to_pil_image(in_tiles(model.translate, batch[0], opt.tile, opt.overlap).cpu())
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(drawn.save, format="PNG"))
    print(f"wrote {opt.out}: {len(outputs)} images")
    return DONE


def name_outputs(inputs: list[str], out: Path) -> list[Path]:
    """A file in `out` for each input: its name with another ending, and a number if it is taken.

    Raises:
        BadInput: `out` is a file, or one of them is an input, which would be lost.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: is a file; name a folder")
    taken: set[str] = set()
    outputs = []
    for path in map(Path, inputs):
        name, count = path.stem, 1
        while name.lower() in taken:  # there are disks to which a.png and A.png are one
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.lower())
        outputs.append(out / f"{name}.png")
    originals = {Path(path).resolve() for path in inputs}
    if lost := [path for path in outputs if path.resolve() in originals]:
        raise BadInput(f"--out {out}: {lost[0]} would be overwritten; name another folder")
    return outputs


if __name__ == "__main__":
    run_program(main)
