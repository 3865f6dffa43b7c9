"""Folders of images and masks, or of pairs, which are no classes: by names, or by content."""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

from engine import terminal
from engine.data.images import read_image
from engine.errors import BadInput

# Folders of other tasks, by their names in small letters alone, without png.
IMAGES = {"images", "image", "imgs", "img", "im", "jpegimages", "leftimgbit"}
MASKS = {"masks", "mask", "labels", "label", "annotations", "ann", "anns", "segmentations", "seg"}
MASKS |= {"segmentation", "segmentationclass", "segmentationobject", "gt", "gtfine", "groundtruth"}
PAIRS = [{"input", "target"}, {"inputs", "targets"}, {"source", "target"}, {"traina", "trainb"}]
PAIRS += [{"input", "output"}, {"inputs", "outputs"}, {"lr", "hr"}, {"hazy", "gt"}]
ENDS = ("mask", "masks", "gt", "seg", "segmentation", "label", "labels")  # of a mask's name
OF_IMAGE = re.compile(rf"(.+?)[ _.-]+({'|'.join(ENDS)})([ _-]*\d+)?")
FEWEST, LOOKED_AT = 3, 8  # pairs of two folders with the same names
COLOURS = 32  # that a mask has at most
Read = Callable[[str], np.ndarray]
ALIKE = 0.9  # correlation from which on two images of one size count as the same picture


def check_names(root: Path, names: list[str]) -> None:
    """Raises BadInput if folders have the names of another task's."""
    lower = {re.sub("[^a-z]", "", name.lower()).removesuffix("png") for name in names}
    if len(lower) <= 3 and lower & IMAGES and lower & MASKS:
        raise BadInput(_told(root, names, "segmentation, images and their masks"))
    if any(lower == pair for pair in PAIRS):
        raise BadInput(_told(root, names, "pairs of images"))


def check_content(root: Path, by_class: dict[str, list[str]]) -> None:
    """Raises BadInput if images have masks, beside them or in a folder with the same names.

    Equal names alone tell nothing: many number the images of each class. Two folders whose images
    are the same pictures are warned of.
    """
    for paths in by_class.values():
        ends = (path.rpartition(".")[0].rstrip("0123456789 _-") for path in paths)
        if 4 * sum(end.endswith(ENDS) for end in ends) < len(paths):
            continue  # the usual case, which costs next to nothing
        stems = {os.path.splitext(path)[0]: path for path in paths}
        masks = [(stem, found[1]) for stem in stems if (found := OF_IMAGE.fullmatch(stem))]
        masks = [(stem, image) for stem, image in masks if image in stems]
        if 4 * len(masks) >= len(stems):
            mask, image = masks[0]
            raise BadInput(
                f"{root}: {stems[mask]} looks like the mask of {stems[image]}: take masks out of "
                "the class folders; here each file is an image of its class"
            )
    read = lru_cache(3)(lambda path: np.asarray(read_image(root / path)))
    for one, other in combinations(by_class, 2) if len(by_class) <= 3 else ():
        kind = _kind_of_all(read, _same_names(by_class[one], by_class[other]))
        if kind == "mask":
            told = _told(root, [one, other], "segmentation, images and their masks")
            raise BadInput(f"{told}; if they are, give their files different names")
        if kind == "same":
            terminal.warn(
                f"{root}: {one} and {other} hold the same pictures under the same names; if they "
                "are pairs, render that task"
            )


def _told(root: Path, names: list[str], task: str) -> str:
    both = ", ".join(names)
    return f"{root}: {both} look like {task}: render that task; here folders are classes"


def _same_names(ones: list[str], others: list[str]) -> list[tuple[str, str]]:
    """Some files of two folders, if their names are the same but for the endings."""
    if len(ones) != len(others):
        return []
    by_name = [{_name(path): path for path in paths} for paths in (ones, others)]
    if by_name[0].keys() != by_name[1].keys():
        return []
    names = sorted(by_name[0])[:: -(-len(by_name[0]) // LOOKED_AT)]
    return [(by_name[0][name], by_name[1][name]) for name in names]


def _name(path: str) -> str:
    return os.path.splitext(path.partition("/")[2])[0]


def _kind_of_all(read: Read, pairs: list[tuple[str, str]]) -> str:
    """What the two images are to each other in all pairs; "" if there are few, or they differ."""
    kinds = set[str]()
    for paths in pairs if len(pairs) >= FEWEST else ():
        kinds.add(_kind(read, *paths))
        kinds.discard("blank")
        if "" in kinds or len(kinds) > 1:  # so of most data sets one image of a class is read
            return ""
    return "".join(kinds)


def _kind(read: Read, one: str, other: str) -> str:
    """What two images are to each other: "mask", one of the other; "same", one picture; or "".

    "blank" tells nothing: one of them has one colour, as a mask and an image that is clear may.
    """
    try:
        both = [read(path) for path in (one, other)]
    except (BadInput, OSError):  # which is told where it is read for training
        return ""
    if both[0].shape != both[1].shape:
        return ""
    if any((pixels == pixels[0, 0]).all() for pixels in both):
        return "blank"
    few = [_has_few_colours(pixels) for pixels in both]
    if few[0] != few[1]:
        return "mask"
    grey = [pixels.mean(2) - pixels.mean() for pixels in both]
    spread = float(np.sqrt((grey[0] ** 2).sum() * (grey[1] ** 2).sum()))
    return "same" if not few[0] and abs((grey[0] * grey[1]).sum()) > ALIKE * spread else ""


def _has_few_colours(pixels: np.ndarray) -> bool:
    """Whether an image (H, W, 3) looks like a mask; one of black and white may be a JPEG."""
    black, white = (pixels < 24).mean(), (pixels > 231).mean()
    if black + white > 0.98 and min(black, white) > 0.005:
        return True
    numbers = pixels.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    return len(np.unique(numbers)) <= COLOURS
