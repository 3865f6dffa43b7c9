"""What tools/check_data.py looks for in folders of classes, or in a table."""

from argparse import Namespace
from collections import Counter
from pathlib import Path

from engine.data.files import SPLITS, Listing, collecting, list_splits, nothing
from engine.data.stored import more_endings
from engine.errors import shorten
from task import doubtful
from task.classes import check_classes, check_divisible, list_classes, read_classes
from task.labels import TABLE, Row, Table
from task.names import difference, simple

KIND = "class"  # what `label` tells of an image
DATASET_KEYS = ()  # of dataset.json, besides those of every task
TARGETS = ()  # folders of images that are no inputs of the network
FURTHER = (doubtful,)  # modules with an option for more that is looked for
UNBALANCED = 10  # the ratio of the largest class to the smallest from which on it is noted


class InTable(str):
    """The path of an image that a table names, which knows its row."""

    row: Row


def find_splits(
    folder: Path, opt: Namespace, faults: list[str], notes: list[str]
) -> dict[Path, Listing]:
    """What lies in the folders of the splits; or the rows of a table, each split as a listing."""
    table: Table | None = None
    before = len(faults)
    with collecting(faults):
        table = read_classes(folder, Namespace(group=None, images=opt.images), faults)
    if table is None:
        more = more_endings(opt.images)
        return {} if len(faults) > before else list_splits(folder, notes, more)
    if table.others:
        notes.append(f"{table.path}: columns not used: {shorten(table.others)}")
    if table.unnamed:
        notes.append(f"{folder}: no row of {TABLE} names: {shorten(table.unnamed)}")
    if not table.has("test"):
        notes.append(f"{table.path}: no row is of the split test; test.py will need some")
    splits: dict[Path, Listing] = {}
    if not table.has("train"):
        faults.append(f"{table.path}: no row is of the split train; add some")
        return splits
    for split in filter(table.has, SPLITS):
        paths = []
        for row in table.of(split):
            paths.append(path := InTable(row.file))
            path.row = row
        classes = sorted({path.row.label for path in paths})
        splits[folder / split] = nothing(folder)._replace(folders=classes, images=paths)
    return splits


def label(path: str) -> str:
    """The class of an image, by its path in a split."""
    return path.row.label if isinstance(path, InTable) else path.partition("/")[0]


def used_images(found: Listing) -> list[str]:
    """Those in class folders, or all that a table names."""
    return [path for path in found.images if "/" in path or isinstance(path, InTable)]


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
    in_table = isinstance(next(iter(found.images), ""), InTable)
    if not in_table and (not is_train or not empty or len(empty) == len(counts)):
        again = found._replace(unused=[*found.unused])
        list_classes(root, None if is_train else list(counts), again)
    if beside := [path for path in found.images if "/" not in path and not in_table]:
        notes.append(f"{root}: not used, as not in a class folder: {shorten(beside)}")
    note_names(root, found, list(counts), notes)
    width, total = max(map(len, counts), default=0), max(sum(counts.values()), 1)
    lines = [f"  {name:{width}}  {n:7}  {n / total:6.1%}" for name, n in counts.items()]
    return "\n".join([f" in {len(counts)} classes", *lines])


def note_names(root: Path, found: Listing, classes: list[str], notes: list[str]) -> None:
    """Adds folders within classes, and classes whose names look alike."""
    parts = [path.split("/") for path in found.images if not isinstance(path, InTable)]
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
                what = "row" if isinstance(next(iter(found.images), ""), InTable) else "folder"
                notes.append(f"{other}: no {what} for {missing}, which stay without a result")
    grouped = any(isinstance(path, InTable) and path.row.group for path in train.images)
    # Else a share of train/ is set aside; groups may leave a class on one side.
    if all(other.name != "val" for other, _ in others) and not grouped:
        with collecting(faults):
            check_divisible(root, counts)
    most, least = max(counts.values(), default=0), min(counts.values(), default=0)
    if most > UNBALANCED * least > 0:
        notes.append(
            f"{root}: the largest class has {most} images and the smallest {least}; "
            "train.py --balance weights them alike, --sample balanced draws them alike"
        )
