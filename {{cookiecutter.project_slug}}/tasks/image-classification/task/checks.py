"""What tools/check_data.py looks for in folders of classes."""

from collections import Counter
from pathlib import Path

from engine.data.files import Listing, collecting
from engine.errors import shorten
from task.classes import check_classes, check_divisible, list_classes
from task.names import difference, simple

KIND = "class"  # what `label` tells of an image
DATASET_KEYS = ()  # of dataset.json, besides those of every task
TARGETS = ()  # folders of images that are no inputs of the network
UNBALANCED = 10  # the ratio of the largest class to the smallest from which on it is noted


def label(path: str) -> str:
    """The class of an image, by its path in a split."""
    return path.partition("/")[0]


def used_images(found: Listing) -> list[str]:
    """Those in class folders."""
    return [path for path in found.images if "/" in path]


def count(found: Listing) -> dict[str, int]:
    """How many images each class has."""
    counts = Counter(map(label, used_images(found)))
    return {name: counts[name] for name in found.folders}


def check_split(
    root: Path,
    found: Listing,
    sizes: dict[str, tuple[int, int]],
    faults: list[str],
    notes: list[str],
) -> str:
    """Adds what is wrong with the folders of a split to `faults`, which would stop a run, and
    `notes`; returns a line for each class. BadInput: as list_classes."""
    counts, is_train = count(found), root.name == "train"
    empty = [name for name, images in counts.items() if not images]
    none = "no image in this class; add some or delete the folder"
    (faults if is_train else notes).extend(f"{root / name}: {none}" for name in empty)
    if not is_train or not empty or len(empty) == len(counts):
        list_classes(root, None if is_train else list(counts))
    if beside := [path for path in found.images if "/" not in path]:
        notes.append(f"{root}: not used, as not in a class folder: {shorten(beside)}")
    note_names(root, found, list(counts), notes)
    width, total = max(map(len, counts), default=0), max(sum(counts.values()), 1)
    lines = [f"  {name:{width}}  {n:7}  {n / total:6.1%}" for name, n in counts.items()]
    return "\n".join([f" in {len(counts)} classes", *lines])


def note_names(root: Path, found: Listing, classes: list[str], notes: list[str]) -> None:
    """Adds folders within classes, and classes whose names look alike."""
    parts = [path.split("/") for path in found.images]
    if deeper := sorted({"/".join(part[:2]) for part in parts if len(part) > 2}):
        notes.append(
            f"{root}: subfolders belong to the class they lie in: {shorten(deeper, 3)}; move them "
            "up if they are the classes"
        )
    alike: dict[str, str] = {}
    for name in classes:
        if (other := alike.setdefault(simple(name), name)) != name:
            notes.append(
                f"{root}: the classes {other!r} and {name!r} differ by {difference(other, name)} "
                "alone; merge them if they are one"
            )


def check_together(splits: dict[Path, Listing], faults: list[str], notes: list[str]) -> None:
    """Adds what is wrong between the splits; the first one is train/."""
    (root, train), *others = splits.items()
    counts = count(train)
    for other, found in others if counts else ():
        with collecting(faults):
            check_classes(other, found.folders, list(counts), all_needed=False)
            if missing := ", ".join(sorted(counts.keys() - found.folders)):
                notes.append(f"{other}: no folder for {missing}, which stay without a result")
    if all(other.name != "val" for other, _ in others):  # a share of train/ is set aside
        with collecting(faults):
            check_divisible(root, counts)
    most, least = max(counts.values(), default=0), min(counts.values(), default=0)
    if most > UNBALANCED * least > 0:
        notes.append(
            f"{root}: the largest class has {most} images and the smallest {least}; "
            "train.py --balance weights them alike, --sample balanced draws them alike"
        )
