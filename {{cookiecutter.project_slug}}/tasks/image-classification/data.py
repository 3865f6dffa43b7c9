"""What a sample is: an image out of a folder that is named after its class.

    DIR/train/CLASS/any_name.jpg
    DIR/test/CLASS/any_name.jpg

A file DIR/dataset.json may say where the images are from, and `"flip": false` if mirrored images
are not what they were, as with digits.
"""

import json
import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

import images
from augment import flip, shift
from engine.cache import CachedImages
from engine.errors import BadInput, shorten
from engine.names import Names
from images import files_below, is_hidden, is_image, read_image

BUILT_IN = "data/digits"  # the images that come with the project


def train_part(opt: Namespace) -> "ClassFolders":
    """The images to learn from."""
    return ClassFolders(folder(opt.data) / "train", opt, training=True)


def test_part(opt: Namespace, about: dict[str, Any]) -> "ClassFolders":
    """The images to be judged by, which are never changed at random.

    Args:
        opt: The options.
        about: What is known `about` the training part.

    Raises:
        BadInput: Its classes are not those of the training part.
    """
    part = ClassFolders(folder(opt.data) / "test", opt, training=False)
    missing = sorted(set(about["classes"]) - set(part.classes))
    unknown = sorted(set(part.classes) - set(about["classes"]))
    if missing or unknown:
        raise BadInput(
            f"{part.root}: its class folders must be those of training; "
            + f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    return part


# An image takes three steps: `load` always gives the same, so its result is kept in the cache;
# `random_transforms` change it as they like, each time anew; `augment` changes a whole batch where
# the network is. Each sample and each batch has a seed of its own, so runs stay exact.


def load(path: str | Path, opt: Namespace) -> Tensor:
    """Reads an image and resizes it: uint8 (3, S, S), S = `--img-size`.

    The name of the cache tells what is written here and in images.py, so a change makes it anew. An
    option that is used here has to be in that name too: see `recipe` in ClassFolders.
    """
    size = (opt.img_size, opt.img_size)
    return v2.functional.pil_to_tensor(v2.functional.resize(read_image(path, size), size))


def random_transforms(opt: Namespace) -> list[v2.Transform]:
    """What happens to each training image by itself: any transforms of torchvision's v2."""
    return []


def augment(
    opt: Namespace, random: Generator, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """What happens to a whole training batch on the device, which costs next to nothing there.

    Args:
        opt: The options.
        random: The generator to draw from, on the device.
        images: uint8 (N, 3, S, S).
        labels: (N,).
    """
    if opt.flip:
        images = flip(images, random)
    if opt.shift:
        images = shift(images, opt.shift, random)
    return images, labels


class ClassFolders(CachedImages):
    """Images in one folder for each class, whose names sorted give the labels 0, 1, ...

    Hidden files and folders (a name that begins with a dot) are not looked at. Other files that
    are no images are left out, and named in a warning.

    Args:
        root: The folder that holds the class folders.
        opt: The options.
        training: Whether `random_transforms` are applied.

    Returns:
        For an index: a tensor (3, S, S) uint8 and its label, int64.

    Raises:
        BadInput: There is no such folder, no class in it, or no image in one of them.
    """

    def __init__(self, root: Path, opt: Namespace, training: bool) -> None:
        super().__init__(root, recipe=f"{opt.img_size}px", code=[__file__, images.__file__])
        self.opt = opt
        transforms = random_transforms(opt) if training else []
        self.transform = v2.Compose(transforms) if transforms else None
        self.classes = find_classes(root)
        paths: list[str] = []
        left_out: list[str] = []
        counts = []
        start = len(str(root)) + 1
        for name in self.classes:
            files = [path[start:].replace(os.sep, "/") for path in files_below(root / name)]
            wanted = [path for path in files if is_image(path)]
            left_out += [path for path in files if not is_image(path)]
            paths += wanted
            counts.append(len(wanted))
        if left_out:
            print(f"warning: {root}: left out, as not images: {shorten(left_out)}", file=sys.stderr)
        self.files = Names(paths)
        self.about = {"classes": dict(zip(self.classes, counts, strict=True))}
        if empty := [name for name, count in self.about["classes"].items() if count == 0]:
            raise BadInput(
                f"{root}: no image in the class folder{'s' * (len(empty) > 1)} {', '.join(empty)}; "
                f"files that count end in {', '.join(IMG_EXTENSIONS)}"
            )
        self.labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def decode(self, index: int) -> Tensor:
        return load(f"{self.root}/{self.files[index]}", self.opt)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.image(index)
        return self.transform(image) if self.transform else image, self.labels[index]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor] | None:
        """Several samples at once; None if they have to be made one by one."""
        stacked = None if self.transform else self.images(indices)
        return None if stacked is None else (stacked, self.labels[indices])


def find_classes(root: Path) -> list[str]:
    """The names of the class folders in `root`, sorted.

    Raises:
        BadInput: There is no such folder, or no class in it.
    """
    if not root.is_dir():
        raise BadInput(f"{root}: no such folder; --data wants a folder that holds train/ and test/")
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    classes = sorted(name for name in folders if not is_hidden(name))
    if not classes:
        raise BadInput(f"{root}: no class folders; each class is a folder with its images")
    return classes


def folder(name: str) -> Path:
    """The folder that `--data` names; the images that come with the project are unpacked first."""
    path = Path(name)
    if path == Path(BUILT_IN) and not path.exists():
        unpack_digits(path)
    return path


def unpack_digits(target: Path) -> None:
    """Cuts data/digits.png into single images: row c holds the digits c, each 8x8 pixels.

    Every fifth image of a class is for testing. The sheet is made of the test part of "Optical
    Recognition of Handwritten Digits" (data/README.md states source and licence).
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with Image.open(Path(__file__).with_name("data") / "digits.png") as sheet:
        for label in range(sheet.height // 8):
            for part in ("train", "test"):
                (partial / part / str(label)).mkdir(parents=True)
            for i in range(sheet.width // 8):
                digit = sheet.crop((8 * i, 8 * label, 8 * i + 8, 8 * label + 8))
                if digit.getbbox():  # the shorter rows end in black
                    part = "test" if i % 5 == 4 else "train"
                    digit.save(partial / part / str(label) / f"{i:03d}.png")
    about = {
        "name": "Optical Recognition of Handwritten Digits",
        "source": "https://doi.org/10.24432/C50P49",
        "licence": "CC BY 4.0",
        "flip": False,
    }
    (partial / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    try:
        partial.rename(target)  # all or nothing, also when two runs start at once
    except OSError:
        shutil.rmtree(partial)
