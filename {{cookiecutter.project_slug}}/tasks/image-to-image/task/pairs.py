"""Folders of pairs: their layout, the names of the pairs, their sizes."""

import sys
from argparse import Namespace
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from engine.data.images import check_split, image_size, list_images, read_dataset_json
from engine.errors import BadInput, shorten


def find_layout(root: Path, opt: Namespace) -> str:
    """The layout of the pairs in the folder `root`: folders, side-by-side or photographs.

    Raises:
        BadInput: There is no such folder, half of the pairs is missing, or an option does not go
            with the layout.
    """
    check_split(root)
    sides = [(root / side).is_dir() for side in "AB"]
    pairs = read_dataset_json(root.parent).get("pairs", "")
    if pairs not in ("", "side-by-side"):
        raise BadInput(f'{root.parent}/dataset.json: pairs can only be "side-by-side"; fix it')
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
    found, left_out = list_images(root, root)
    if left_out:
        print(f"warning: {root}: left out, as not images: {shorten(left_out)}", file=sys.stderr)
    if not found:
        ends = ", ".join(IMG_EXTENSIONS)
        raise BadInput(f"{root}: no image in this folder; files that count end in {ends}")
    return found


def match_names(root: Path) -> list[str]:
    """The names of the images in A, which must be those of the images in B.

    Raises:
        BadInput: A name is in one of the two alone.
    """
    inputs, targets = (find_images(root / side) for side in "AB")
    alone = [f"A/{name}" for name in sorted(set(inputs) - set(targets))]
    alone += [f"B/{name}" for name in sorted(set(targets) - set(inputs))]
    if alone:
        raise BadInput(
            f"{root}: no image of the same name in the other folder: {shorten(alone)}; the two "
            "images of a pair have one name, in A and in B"
        )
    return inputs


def pair_size(
    paths: list[str], layout: str, opt: Namespace, least: int | None = None
) -> tuple[int, int]:
    """Height and width of a pair, from the heads of its files.

    Args:
        paths: The file, or with the layout folders the two files.
        layout: As `find_layout` returns it.
        opt: The options.
        least: The smallest height and width allowed; None for `--img-size`.

    Raises:
        BadInput: The images of the pair differ in size, or are too small.
    """
    (width, height), *others = map(image_size, paths)
    if others and others[0] != (width, height):
        raise BadInput(
            f"{paths[0]} has {width} x {height} pixels and {paths[1]} {others[0][0]} x "
            f"{others[0][1]}: the images of a pair must have the same size"
        )
    if layout == "side-by-side":
        if width % 2:
            raise BadInput(
                f"{paths[0]}: {width} pixels wide, so not two images of one size side by side"
            )
        width //= 2
    if min(height, width) < (least or opt.img_size):
        needs = f"--img-size {opt.img_size}; lower it, or"
        if least:
            needs = f"SSIM, which takes {least} x {least};"
        raise BadInput(
            f"{paths[0]}: {width} x {height} pixels are too few for {needs} take the image away"
        )
    return height, width
