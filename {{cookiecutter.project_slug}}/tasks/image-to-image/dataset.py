"""What a sample is: two crops, of what goes into the network and of what should come out.

Below DIR/train and DIR/test, one of

    A/name.jpg and B/name.jpg    inputs and targets, in pairs of the same name and size
    any_name.jpg                 input and target side by side in one image, if --side-by-side is
                                 given or DIR/dataset.json has {"pairs": "side-by-side"}
    any_name.jpg                 photographs: the targets, whose inputs are made by --degrade

A file DIR/dataset.json may also say where the images are from, and `"flip": false` if mirrored
images are not what they were, as with letters.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

import images
from augment import flip
from degrade import degrade
from engine.cache import CachedImages
from engine.errors import BadInput, shorten
from engine.names import Names
from images import files_below, image_size, is_image, read_facts, read_image

BUILT_IN = "data/photos"  # the images that come with the project
SAMPLES = 1000  # about how many an epoch has if --crops is left to the program
Pair = tuple[Tensor, Tensor]  # input and target, both uint8 (3, H, W)


def train_part(opt: Namespace) -> "Pairs":
    """The images to learn from, in random crops."""
    return Pairs(Path(opt.data) / "train", opt, "random")


def test_part(opt: Namespace, about: dict[str, Any]) -> "Pairs":
    """The images to be judged by while the network learns, in crops that are always the same.

    Args:
        opt: The options.
        about: What is known about the training part: nothing.
    """
    return Pairs(Path(opt.data) / "test", opt, "grid")


def whole_part(opt: Namespace) -> "Pairs":
    """The images to be judged by in the end: whole, and so of any size."""
    return Pairs(Path(opt.data) / "test", opt, "whole")


# An image takes three steps: `load` always gives the same, so its result is kept in the cache; a
# sample is cut out of it, and degraded, with a seed of its own; `augment` changes a whole batch
# where the network is, with a seed of its own. So runs stay exact.


def load(path: str | Path) -> Tensor:
    """Reads an image in full size: uint8 (3, H, W).

    What is written here and in images.py is a part of the name of the cache, so a change makes it
    anew.
    """
    return v2.functional.pil_to_tensor(read_image(path))


def augment(opt: Namespace, random: Generator, inputs: Tensor, targets: Tensor) -> Pair:
    """What happens to a whole training batch on the device: the same to both images of a pair.

    Args:
        opt: The options.
        random: The generator to draw from, on the device.
        inputs: uint8 (N, 3, S, S).
        targets: uint8 (N, 3, S, S).
    """
    if opt.flip:
        inputs, targets = flip(torch.cat([inputs, targets], dim=1), random).split(3, dim=1)
    return inputs, targets


class Pairs(CachedImages):
    """Pairs of images, in one of the layouts above.

    Args:
        root: The folder of the images: train or test.
        opt: The options.
        crops: What an index means. random: a crop of S x S pixels (S = `--img-size`) anywhere in
            an image, each of which has `--crops`. grid: one of the crops that lie beside each other
            in an image; what is left over at its right and at its bottom is not used. whole: an
            image.

    Returns:
        For an index: input and target, both uint8 (3, H, W).

    Raises:
        BadInput: There is no such folder, no image in it, two images are no pair, or one is too
            small for a crop.
    """

    def __init__(self, root: Path, opt: Namespace, crops: str) -> None:
        super().__init__(root, "full", code=[__file__, images.__file__])
        self.opt, self.size = opt, opt.img_size
        if not root.is_dir():
            raise BadInput(f"{root}: no such folder; --data wants one that holds train/ and test/")
        self.layout = find_layout(root, opt)
        self.degradation = opt.degrade or "noise"
        if self.layout == "folders":
            names = match_names(root)
            self.files = Names([f"{side}/{name}" for side in "AB" for name in names])
            self.count = len(names)
        else:
            self.files = Names(find_images(root))
            self.count = len(self.files)
        self.about: dict[str, Any] = {}  # a network for one folder of images fits any other
        sizes = self._sizes()
        if crops == "random":
            self.places: list[tuple[int, int, int]] | None = None
            self.length = self.count * (opt.crops or max(1, round(SAMPLES / self.count)))
        elif crops == "grid":
            self.places = self._grid(sizes)
            self.length = len(self.places)
        else:
            self.size, self.places, self.length = 0, None, self.count

    def _sizes(self) -> list[tuple[int, int]]:
        """Height and width of each pair, from the heads of the files; complains of unfit ones."""
        sizes = []
        for i in range(self.count):
            path = f"{self.root}/{self.files[i]}"
            width, height = image_size(path)
            if self.layout == "folders":
                other = f"{self.root}/{self.files[i + self.count]}"
                if (pair := image_size(other)) != (width, height):
                    raise BadInput(
                        f"{path} has {width} x {height} pixels and {other} {pair[0]} x {pair[1]}: "
                        "a pair must be of one size"
                    )
            elif self.layout == "side-by-side":
                if width % 2:
                    raise BadInput(
                        f"{path}: {width} pixels wide, and no two images of one size side by side"
                    )
                width //= 2
            if min(height, width) < self.opt.img_size:
                raise BadInput(
                    f"{path}: {width} x {height} pixels are too few for --img-size "
                    f"{self.opt.img_size}; lower it, or take the image away"
                )
            sizes.append((height, width))
        return sizes

    def _grid(self, sizes: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """Image, top and left of all crops that lie beside each other."""
        return [
            (i, top, left)
            for i, (height, width) in enumerate(sizes)
            for top in range(0, height - self.size + 1, self.size)
            for left in range(0, width - self.size + 1, self.size)
        ]

    def __len__(self) -> int:
        return self.length

    def names(self) -> list[str]:
        """The names of the images, without the folders A and B."""
        prefix = "A/" if self.layout == "folders" else ""
        return [name.removeprefix(prefix) for name in self.files[: self.count]]

    def decode(self, index: int) -> Tensor:
        return load(f"{self.root}/{self.files[index]}")

    def __getitem__(self, index: int) -> Pair:
        if self.places:
            i, top, left = self.places[index]
        else:
            i, top, left = index % self.count, -1, -1
        target = self.image(i)
        if self.layout == "folders":
            target = torch.cat([target, self.image(i + self.count)])
        elif self.layout == "side-by-side":
            target = torch.cat(target.chunk(2, dim=2))
        if self.size:
            if not self.places:
                height, width = target.shape[1:]
                top = int(torch.randint(height - self.size + 1, ()))
                left = int(torch.randint(width - self.size + 1, ()))
            target = target[:, top : top + self.size, left : left + self.size]
        target = target.contiguous()  # a copy, so that the rest of a large image is not kept
        if self.layout == "photographs":
            return degrade(target, self.degradation, self.opt), target
        return target[:3], target[3:]


def find_layout(root: Path, opt: Namespace) -> str:
    """How the pairs lie in the folder `root`: folders, side-by-side or photographs.

    Raises:
        BadInput: Half of the pairs is missing, or an option does not go with the layout.
    """
    sides = [(root / side).is_dir() for side in "AB"]
    pairs = read_facts(root.parent).get("pairs", "")
    if pairs not in ("", "side-by-side"):
        raise BadInput(f'{root.parent}/dataset.json: pairs can only be "side-by-side"; mend it')
    if opt.side_by_side is not None:
        pairs = "side-by-side" if opt.side_by_side else ""
    if any(sides) and not all(sides):
        raise BadInput(f"{root}: has one of the folders A and B; pairs need both")
    if any(sides) and pairs:
        raise BadInput(f"{root}: has folders A and B, and so no pairs side by side; choose one")
    if opt.degrade and (pairs or any(sides)):
        raise BadInput(f"--degrade {opt.degrade}: {root} has pairs already; leave it out")
    return "folders" if any(sides) else pairs or "photographs"


def find_images(root: Path) -> list[str]:
    """The images below a folder, relative to it; other files are named in a warning.

    Raises:
        BadInput: There are none.
    """
    start = len(str(root)) + 1
    files = [path[start:].replace(os.sep, "/") for path in files_below(root)]
    if left_out := [path for path in files if not is_image(path)]:
        print(f"warning: {root}: left out, as not images: {shorten(left_out)}", file=sys.stderr)
    if not (found := [path for path in files if is_image(path)]):
        ends = ", ".join(IMG_EXTENSIONS)
        raise BadInput(f"{root}: no image in this folder; files that count end in {ends}")
    return found


def match_names(root: Path) -> list[str]:
    """The names that the images in A and in B have in common, which must be all.

    Raises:
        BadInput: A name is in one of the two alone.
    """
    ours, theirs = (find_images(root / side) for side in "AB")
    alone = [f"A/{name}" for name in sorted(set(ours) - set(theirs))]
    alone += [f"B/{name}" for name in sorted(set(theirs) - set(ours))]
    if alone:
        raise BadInput(f"{root}: without the other image of the pair: {shorten(alone)}")
    return ours
