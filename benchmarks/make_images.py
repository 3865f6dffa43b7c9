"""The images that are trained on, in a folder that git ignores.

They are cut from the photographs that come with the template, so they are the same on every machine
and need no network.
"""

import functools
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.machine import ROOT

PHOTOS = "*/tasks/image-to-image/tools/photos/*/*.jpg"
KINDS = {
    "png": "PNGs of 32x32 pixels",
    "jpeg": "JPEGs of 500x375 pixels",  # of quality 90
    "tiny": "hard links to PNGs of 8x8 pixels",  # of noise, for the cost of a long list
}
CLASSES = 10
VAL = 20  # images in val/, so that all of train/ is trained on
TINY_FILES = 1000  # that are linked to; file systems limit the links to one file


@dataclass(frozen=True)
class Images:
    """A data set to be made: images of one of KINDS, `train` of them to train on."""

    kind: str
    train: int


def make(images: Images, data: Path) -> Path:
    """Makes a data set in the folder `data`, unless it is there; returns its own folder."""
    folder, work = data / f"{images.kind}-{images.train}", data / "partial"
    if folder.exists():
        return folder
    print(f"making {folder}", flush=True)
    shutil.rmtree(work, ignore_errors=True)
    parts = [work / ("train" if i < images.train else "val") for i in range(images.train + VAL)]
    for part in {*parts}:
        for label in range(CLASSES):
            (part / str(label)).mkdir(parents=True)
    if images.kind == "tiny":
        _link(parts, work / "files")
    else:
        with ProcessPoolExecutor() as pool:
            one = functools.partial(_cut, images.kind)
            all(pool.map(one, range(len(parts)), parts, chunksize=64))  # raises what they raise
    work.rename(folder)
    return folder


def _link(parts: list[Path], files: Path) -> None:
    """Links to files of noise, one in each part."""
    files.mkdir()
    for i, part in enumerate(parts):
        file = files / f"{i % TINY_FILES}.png"
        if not file.exists():
            random.seed(i)
            Image.frombytes("RGB", (8, 8), random.randbytes(192)).save(file)
        os.link(file, part / str(i % CLASSES) / f"{i:07d}.png")


def _cut(kind: str, i: int, part: Path) -> Path:
    """Writes image number `i`, which the number alone decides; returns its file."""
    wall = _build_wall()
    random.seed(i)
    left, top = random.randint(0, wall.width - 500), random.randint(0, wall.height - 375)
    image = wall.crop((left, top, left + 500, top + 375))
    if kind == "png":
        image = image.resize((32, 32))
    file = part / str(i % CLASSES) / f"{i:06d}.{kind}"
    image.save(file, quality=90)  # which PNG does not know
    return file


@functools.cache
def _build_wall() -> Image.Image:
    """The photographs of the template side by side, 4 in a row, in their own scale."""
    wall = Image.new("RGB", (4 * 288, 4 * 192))
    for i, path in enumerate(sorted(ROOT.glob(PHOTOS))):
        with Image.open(path) as photo:
            wall.paste(photo.crop((0, 0, 288, 192)), (288 * (i % 4), 192 * (i // 4)))
    return wall


def forget_cache(folder: Path) -> None:
    """Deletes what training has left beside a data set that was made here."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
