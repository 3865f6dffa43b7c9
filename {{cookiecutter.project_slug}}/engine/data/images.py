"""Images: which files count, how they are read, lists of them; random flips of batches."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Generator, Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from engine.errors import BadInput


def read_image(path: str | Path, least: tuple[int, int] | None = None) -> Image.Image:
    """Reads an image of any kind as RGB, upright, transparency on white.

    Args:
        path: The file.
        least: Width and height that are enough. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of
            its size, which is faster, but not smaller than this.

    Raises:
        BadInput: The file is not an image, or damaged.
    """
    try:
        with Image.open(path) as file:
            if least:
                file.draft(None, least)
            image: Image.Image = ImageOps.exif_transpose(file)  # cameras note which side is up
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
                image = image.convert("I").point(lambda value: value / 257, "L")
            if image.has_transparency_data:  # else the colour hidden behind it would show
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise _unreadable(path, error) from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it, from the head of the file.

    Raises:
        BadInput: The file is not an image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            sideways = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # as in read_image
        raise _unreadable(path, error) from None
    return (height, width) if sideways else (width, height)


def _unreadable(path: str | Path, error: Exception) -> BadInput:
    return BadInput(f"{path}: not readable as an image ({error}); replace or remove it")


def read_dataset_json(folder: Path) -> dict:
    """The content of dataset.json in a folder of images; empty if there is no such file.

    `"flip": false` in it turns random flips off, for letters and the like.

    Raises:
        BadInput: The file cannot be read, or `flip` is neither true nor false.
    """
    path = folder / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error}); fix or delete it") from None
    if not isinstance(content, dict) or not isinstance(content.get("flip", True), bool):
        raise BadInput(f"{path}: must be an object whose flip is true or false; fix or delete it")
    return content


def check_split(root: Path) -> None:
    """Raises BadInput unless the folder of a split, such as DIR/train, is there."""
    if not root.is_dir():
        more = "; test.py --split val needs none" if root.name == "test" else ""
        raise BadInput(
            f"{root}: no such folder; --data wants a folder that holds {root.name}/{more}"
        )


def list_images(root: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The images below `folder`, and the other files, as paths relative to `root`."""
    start = len(str(root)) + 1
    files = [path[start:].replace(os.sep, "/") for path in files_below(folder)]
    images = [path for path in files if is_image(path)]
    return images, [path for path in files if not is_image(path)]


def images_below(folder: str | Path) -> list[str]:
    """The images in a folder and in its subfolders, in a fixed order; none that are hidden."""
    return [path for path in files_below(folder) if is_image(path)]


def files_below(folder: str | Path) -> list[str]:
    """The files in a folder and its subfolders, also linked ones, in a fixed order; none hidden."""
    found: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [os.path.join(root, name) for name in sorted(files) if not is_hidden(name)]
    return found


def is_image(path: str | Path) -> bool:
    """Whether a file counts as an image, by its name."""
    return not is_hidden(path) and str(path).lower().endswith(IMG_EXTENSIONS)


def is_hidden(path: str | Path) -> bool:
    """Whether a file is what Unix hides, or what Windows puts into folders by itself."""
    name = os.path.basename(path)
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def split_by_hash(names: Iterable[str], groups: Sequence[int], share: float) -> list[bool]:
    """Chooses about `share` of the names of each group, by a hash of the name.

    Adding names changes no choice, unless a group would be chosen whole or not at all: then its
    name with the highest hash is left, or that with the lowest is chosen.

    Args:
        names: Such as relative paths.
        groups: A number for each name, such as its class; each number stands at least twice.
        share: In (0, 1).

    Returns:
        Whether each name is chosen.
    """
    hashes = [
        int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:6], "big")
        / 2**48
        for name in names
    ]
    lowest: dict[int, int] = {}
    highest: dict[int, int] = {}
    for i, group in enumerate(groups):
        if hashes[i] < hashes[lowest.setdefault(group, i)]:
            lowest[group] = i
        if hashes[i] >= hashes[highest.setdefault(group, i)]:
            highest[group] = i
    chosen = [value < share for value in hashes]
    for group in lowest:
        chosen[lowest[group]], chosen[highest[group]] = True, False
    return chosen


class SerializedList(Sequence[str]):
    """An immutable list of strings, kept as one block of bytes and the places where they end.

    A forked worker shares its parent's memory until one of the two writes to it. Reading an object
    of Python changes its reference count, so workers that read a million paths from a list would
    each end up with a copy of them (pytorch #13246).
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:  # a string for an integer, a list for a slice
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        start, end = self._ends[chosen : chosen + 2]
        return self._bytes[start:end].decode("utf-8", "surrogatepass")

    def digest(self) -> bytes:
        """All strings and their lengths as bytes, which differ for any two lists."""
        return self._ends[1:].tobytes() + self._bytes


def flip(images: Tensor, random: Generator) -> Tensor:
    """Mirrors about half of the images of a batch, left to right.

    To mirror the two images of a pair alike, concatenate their channels first.

    Args:
        images: (N, C, H, W) of any type.
        random: The generator to draw from, on the device of the images.

    Returns:
        The same shape and type.
    """
    mirrored = torch.rand(len(images), generator=random, device=images.device) < 0.5
    whole = images.permute(0, 2, 3, 1)  # the order in memory
    # torch.where would be shorter and, on the CPU, take two to four times as long.
    rows = torch.arange(len(images), device=images.device) + len(images) * mirrored
    return torch.cat([whole, whole.flip(2)]).index_select(0, rows).permute(0, 3, 1, 2)
