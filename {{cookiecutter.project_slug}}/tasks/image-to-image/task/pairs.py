"""Folders of pairs: their layout, the names of the pairs, their sizes."""

from argparse import Namespace
from pathlib import Path, PurePosixPath

from engine import terminal
from engine.data.files import ENDINGS, Listing, check_split, read_dataset_json
from engine.data.images import ALPHA, image_head
from engine.data.stored import stored_size
from engine.errors import BadInput, shorten
from task.near_pairs import check_sides


def find_layout(root: Path, opt: Namespace) -> str:
    """The layout of the pairs in the folder `root`: folders, side-by-side or photographs.

    Raises:
        BadInput: There is no such folder, half of the pairs is missing, or an option does not go
            with the layout.
    """
    check_sides(root)
    check_split(root)
    sides = [(root / side).is_dir() for side in "AB"]
    pairs = "side-by-side" if opt.side_by_side else ""
    if opt.side_by_side is None:
        pairs = read_dataset_json(root.parent, "pairs").get("pairs", "")
    if pairs not in ("", "side-by-side"):
        raise BadInput(f'{root.parent}/dataset.json: pairs can only be "side-by-side"; fix it')
    if any(sides) and not all(sides):
        raise BadInput(f"{root}: has one of the folders A and B; pairs need both")
    if any(sides) and pairs:
        raise BadInput(f"{root}: has folders A and B, and so no pairs side by side; choose one")
    if opt.degrade and (pairs or any(sides)):
        raise BadInput(f"--degrade {opt.degrade}: {root} has pairs already; leave it out")
    return "folders" if any(sides) else pairs or "photographs"


def choose_images(root: Path, found: Listing, layout: str) -> list[str]:
    """The images of a layout, relative to `root`; the others become unused ones of `found`.

    Raises:
        BadInput: There are none.
    """
    sides = ("A/", "B/") if layout == "folders" else ("",)
    for side in sides:
        if not any(path.startswith(side) for path in found.images):
            unused = f"; not used: {shorten(found.unused, 3)}" if found.unused else ""
            ends = ", ".join(ENDINGS)
            raise BadInput(
                f"{root / side}: no image in this folder; files that count end in {ends}{unused}"
            )
    found.unused.extend(path for path in found.images if not path.startswith(sides))
    return [path for path in found.images if path.startswith(sides)]


def match_names(root: Path, images: list[str]) -> tuple[list[str], list[str]]:
    """The names of the images in A, and all images: those in A, then in B the other of each pair.

    The two of a pair have one name; where they have not, one name but for the ending.

    Raises:
        BadInput: A name is in one of the two alone, or there are several but for the ending.
    """
    inputs, targets = ([p[2:] for p in images if p.startswith(side)] for side in ("A/", "B/"))
    found = dict(zip(targets, targets, strict=True))
    alone = [f"A/{name}" for name in sorted(set(inputs) - set(targets))]
    alone += [f"B/{name}" for name in sorted(set(targets) - set(inputs))]
    if alone:
        stems = [{_stem(name): name for name in names} for names in (inputs, targets)]
        if stems[0].keys() != stems[1].keys() or not len(inputs) == len(targets) == len(stems[0]):
            raise BadInput(
                f"{root}: no image of the same name in the other folder: {shorten(alone)}; the two "
                "images of a pair have one name, in A and in B"
            )
        found = {name: stems[1][_stem(name)] for name in inputs}
    return inputs, [f"A/{name}" for name in inputs] + [f"B/{found[name]}" for name in inputs]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def pair_size(
    paths: list[str], layout: str, opt: Namespace, least: int | None = None
) -> tuple[tuple[int, int], bool]:
    """Height and width of a pair, and whether its target is transparent, from the files' heads.

    Args:
        paths: The file, or with the layout folders the two files.
        layout: As `find_layout` returns it.
        opt: The options.
        least: The smallest height and width allowed; None for `--img-size`.

    Raises:
        BadInput: The images of the pair differ in size, or are too small.
    """
    if opt.images == "stored":
        heads = [(stored_size(path, opt.axes), list[str]()) for path in paths]
    else:
        heads = [image_head(path) for path in paths]
    (width, height), *others = (size for size, _ in heads)
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
    return (height, width), ALPHA in heads[-1][1]


def warn_transparent(root: Path, names: list[str]) -> None:
    """Names the targets whose transparency is lost, in one line."""
    if names:
        terminal.warn(
            f"{root}: the transparency of targets is lost, it becomes white: {shorten(names, 3)}"
        )
