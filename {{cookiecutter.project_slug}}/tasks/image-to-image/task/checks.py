"""What tools/check_data.py looks for in folders of pairs or photographs."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from engine.data.files import Listing, collecting, list_splits
from engine.data.stored import more_endings
from engine.errors import shorten
from task.near_pairs import check_names, check_shapes
from task.pairs import choose_images, find_layout, match_names

KIND = "folder of a pair"  # what `label` tells of an image
DATASET_KEYS = ("pairs",)  # of dataset.json, besides those of every task
TARGETS = ("B/",)  # folders of images that are no inputs of the network
FURTHER: tuple[Any, ...] = ()  # modules with an option for more that is looked for
CROP = 64  # the default of --img-size
PLAIN = Namespace(side_by_side=None, degrade=None)  # a run without these options


def find_splits(
    folder: Path, opt: Namespace, faults: list[str], notes: list[str]
) -> dict[Path, Listing]:
    """What lies in the folders of the splits, as list_splits of engine.data.files."""
    return list_splits(folder, notes, more_endings(opt.images))


def label(path: str) -> str:
    """The side of a pair that an image is, by its path in a split."""
    return path[:1] if path.startswith(("A/", "B/")) else ""


def used_images(found: Listing) -> list[str]:
    """Those in A and B if there are pairs in folders, else all."""
    both = {"A", "B"} <= set(found.folders)
    return [path for path in found.images if label(path) or not both]


def check_split(
    root: Path,
    found: Listing,
    sizes: dict[str, tuple[int, int]],
    faults: list[str],
    notes: list[str],
) -> str:
    """Adds what is wrong with the pairs of a split; returns their layout.

    Args:
        root: The folder of the split.
        found: What lies there; what is not used is added.
        sizes: Width and height of each image that can be read.
        faults: What would stop a run.
        notes: What may spoil it.

    Raises:
        BadInput: There is no such folder, no image in it, or half of a pair is missing.
    """
    layout = ""
    with collecting(faults):
        layout = find_layout(root, PLAIN)
    layout = layout or find_layout(root, Namespace(side_by_side=False, degrade=None))
    paths = choose_images(root, found, layout)
    if layout == "folders":
        _, paths = match_names(root, paths)
    elif layout == "photographs":
        with collecting(faults):
            check_names(root, paths)
    others = dict(zip(paths, paths[len(paths) // 2 :], strict=False)) if layout == "folders" else {}
    check_sizes(root, layout, others, sizes, faults, notes)
    return f", {layout}"


def check_sizes(
    root: Path,
    layout: str,
    others: dict[str, str],
    sizes: dict[str, tuple[int, int]],
    faults: list[str],
    notes: list[str],
) -> None:
    """Adds what the sizes of images tell; see `check_split`. Of pairs `others` has the targets."""
    for one, size in sizes.items():
        other = others.get(one, "")
        if one.startswith("A/") and sizes.get(other, size) != size:
            faults.append(f"{root / one}: has {size} pixels, and {other} {sizes[other]}")
        if layout == "side-by-side" and size[0] % 2:
            faults.append(f"{root / one}: {size[0]} pixels wide, so not two images")
    if layout == "photographs" and sizes:
        with collecting(notes):
            check_shapes(root, [[height, width] for width, height in sizes.values()])
    parts = 2 if layout == "side-by-side" else 1
    if small := [path for path, (w, h) in sizes.items() if min(w // parts, h) < CROP]:
        notes.append(f"{root}: need a lower --img-size than {CROP}: {shorten(small)}")


def check_together(splits: dict[Path, Listing], faults: list[str], notes: list[str]) -> None:
    """Adds what is wrong between the splits; the first one is train/."""
    (root, train), *others = splits.items()
    layouts = {}
    for split in splits:
        with collecting([]):
            layouts[split] = find_layout(split, PLAIN)
    for split, layout in layouts.items():
        if layout != layouts.get(root, layout):
            faults.append(f"{split}: holds {layout}, and train/ {layouts[root]}; lay out alike")
    count = len(train.images) / (2 if layouts.get(root) == "folders" else 1)
    if count == 1 and all(other.name != "val" for other, _ in others):
        faults.append(f"{root}: only one to train and to validate on; add images, or a folder val/")
