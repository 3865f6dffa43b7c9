"""The classes of images, by folders or by a table, and whether they fit; labels as text."""

import os
import re
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine import terminal
from engine.data.files import (
    ENDINGS,
    Listing,
    check_split,
    collecting,
    folders_in,
    linked_images,
    list_images,
    nothing,
)
from engine.errors import BadInput, shorten
from task import other_tasks
from task.labels import Row, Table, below_split, read_table
from task.names import difference

# What a spreadsheet makes of 3-5 and of MARCH1, and what it writes for an error.
MONTHS = "jan|feb|m[aä]r|mrz|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz]"
DAY, OF_YEAR = r"\d\d?[-. ]+", r"[-. ]+\d\d(\d\d)?"
DATE = re.compile(
    r"(\d{4}([-/.])\d\d?\2\d\d?|\d\d?([-/.])\d\d?\3\d{4})([ T].*)?"
    rf"|{DAY}({MONTHS})[a-z]*\.?({OF_YEAR})?|({MONTHS})[a-z]*{OF_YEAR}",
    re.IGNORECASE,
)
NO_LABEL = re.compile(r"nan|#(n/a|ref!|value!|name\?|div/0!|num!|null!)", re.IGNORECASE)


class Labelled(NamedTuple):
    """The images of a split and their classes, in the order of the samples."""

    root: Path  # what the files are relative to
    files: list[str]
    labels: list[int]
    classes: list[str]
    found: Listing  # what lies there
    rows: list[Row]  # of the files, if there is a table


def list_folders(
    root: Path, known: list[str] | None = None, more: tuple[str, ...] = ()
) -> Labelled:
    """The images in one folder for each class; errors as list_classes and check_one_class.

    For `known` see list_classes, for `more` list_images.
    """
    by_class, found = list_classes(root, known, list_images(root, more))
    check_one_class(found)
    files = [path for paths in by_class.values() for path in paths]
    labels = [label for label, paths in enumerate(by_class.values()) for _ in paths]
    return Labelled(root, files, labels, list(by_class), found, [])


def list_rows(table: Table, split: str, known: list[str] | None = None) -> Labelled:
    """The images of a split in a table, in the order in which folders would give them.

    Of the classes of training, `known`, some may have no image here, which is warned of.

    Raises:
        BadInput: No row is of this split, or one has a class that training does not know.
    """
    rows = table.of(split)
    if not rows:
        remedy = "add some" if split != "test" else "add some; test.py --split val needs none"
        raise BadInput(f"{table.path}: no row is of the split {split}; {remedy}")
    found = sorted({row.label for row in rows}, key=lambda name: name + "/")
    classes = known or found
    check_classes(table.path, found, classes, all_needed=False)
    if empty := [name for name in classes if name not in {*found}]:
        told = f"no images of {shorten(empty, 3)} in {split}, which stay without a result"
        terminal.warn(f"{table.path}: {told}")
    index = {name: label for label, name in enumerate(classes)}
    rows.sort(key=lambda row: index[row.label])
    root = table.root(rows)
    files = [row.file if root == table.folder else below_split(row.file) for row in rows]
    labels = [index[row.label] for row in rows]
    return Labelled(root, files, labels, classes, nothing(root), rows)


def read_classes(folder: Path, opt: Namespace, faults: list[str] | None = None) -> Table | None:
    """The table in a folder, if there is one, with a class for each image.

    Raises:
        BadInput: As read_table of task.labels; a row has no class or no such name, there is one
            class alone, or one that training lacks.
    """
    table = read_table(folder, opt, faults)
    first: dict[str, Row] = {}
    for row in table.rows if table else ():
        assert table
        with collecting(faults) if faults is not None else nullcontext():
            check_label(table, row)
        if row.split == "train":
            first.setdefault(row.label, row)
    if not table or not first:
        return table
    if len(first) == 1:
        name, row = first.popitem()
        raise table.fault(row.line, f"{name} is the only class of training; add another")
    for row in table.rows:
        if row.label not in first:
            alike = [f"; is it {name!r}?" for name in first if difference(row.label, name)]
            text = f"{row.split} has the class {row.label!r}, and no row of train does"
            raise table.fault(row.line, text + ("".join(alike[:1]) or "; add one or delete it"))
    return table


def check_label(table: Table, row: Row) -> None:
    """Raises BadInput if the label of a row is no name of one class."""
    problem, label = "", row.label
    if not label:
        problem = f"{row.file}: no label; write one or delete the row"
    elif NO_LABEL.fullmatch(label):
        problem = f"label {label!r}: stands for a missing value; write a class or delete the row"
    elif ";" in label:
        problem = f"label {label!r}: several labels, and an image is of one class; keep one"
    elif DATE.fullmatch(label):
        problem = f"label {label!r}: a date, made by a spreadsheet? Write the class as a text"
    if problem:
        raise table.fault(row.line, problem)


def list_classes(
    root: Path, known: list[str] | None = None, found: Listing | None = None
) -> tuple[dict[str, list[str]], Listing]:
    """The images of each class in `root`, sorted, and all that was found.

    Of the classes of training, `known`, some may have no image here, which is warned of.

    Raises:
        BadInput: There is no such folder, no class in it, a class alone or without images, one
            that training does not know, or folders of another task.
    """
    check_order(root)
    listing = list_images(root) if found is None else found
    names = listing.folders
    if known is None:
        other_tasks.check_names(root, names)
    else:
        check_classes(root, names, known, all_needed=False)
    by_class: dict[str, list[str]] = {name: [] for name in known or names}
    for path in listing.images:  # some lie beside the class folders
        (by_class[path.partition("/")[0]] if "/" in path else listing.unused).append(path)
    empty = [name for name, images in by_class.items() if not images]
    unused = f"; not used: {shorten(listing.unused, 3)}" if listing.unused else ""
    if not names:
        unused += "; predict.py takes images without classes" * (root.name != "train")
        raise BadInput(f"{root}: no class folders; each class is a folder with its images{unused}")
    if empty and (known is None or len(empty) == len(known)):
        raise BadInput(
            f"{root}: no image in the class folder{'s' * (len(empty) > 1)} {shorten(empty)}; files "
            f"that count end in {', '.join(ENDINGS)}{unused}"
        )
    if known is None and len(names) == 1:
        deeper = any(path.count("/") > 1 for path in listing.images)
        hint = "are its subfolders the classes? Move them up" if deeper else "add another"
        raise BadInput(f"{root}: one class alone ({names[0]}), so nothing to tell apart; {hint}")
    if known is None:
        other_tasks.check_content(root, by_class)
    if empty:
        terminal.warn(f"{root}: no images of {shorten(empty, 3)}, which stay without a result")
    return by_class, listing


def check_order(root: Path) -> None:
    """Raises BadInput if a split is missing, as where it lies in the classes instead of above."""
    if root.is_dir():
        return
    inside = [root.parent / name / root.name for name in folders_in(root.parent)]
    found = [path for path in inside if list_images(path).images and not folders_in(path)]
    if len(found) > 1:
        raise BadInput(
            f"{root}: no such folder, and there are {shorten([str(path) for path in found], 3)}; "
            f"move them to {root / found[0].parent.name} and so on"
        )
    check_split(root)


def check_one_class(listing: Listing) -> None:
    """Raises BadInput if an image is in two classes, by a link."""
    for one, other in linked_images(listing):
        names = {os.path.relpath(path, listing.root).split(os.sep)[0] for path in (one, other)}
        if len(names) > 1 and names <= {*listing.folders}:
            raise BadInput(f"{other}: is the file {one}, so it has two classes; remove one of them")


def check_classes(
    root: Path, found: list[str], expected: list[str], all_needed: bool = True
) -> None:
    """Raises BadInput unless the classes found in `root` are those of training."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if unknown or (missing and all_needed):
        pairs = ((name, other, difference(name, other)) for name in unknown for other in missing)
        hints = [f"; {one!r} differs from {other!r} by {how}" for one, other, how in pairs if how]
        lists = (shorten([repr(name) for name in names]) or "none" for names in (missing, unknown))
        what = "classes" if root.is_file() else "class folders"
        raise BadInput(
            f"{root}: its {what} must be those of training; missing: {next(lists)}; "
            f"unknown: {next(lists)}"
            + ("".join(hints[:3]) or "; predict.py takes images of other classes" * bool(unknown))
        )


def check_divisible(root: Path, counts: dict[str, int]) -> None:
    """Raises BadInput if a class has only one image, which cannot be on both sides of a split."""
    if alone := [name for name, count in counts.items() if count == 1]:
        raise BadInput(
            f"{root}: only one image in {shorten(alone)}, and one is needed to train on and one "
            "to validate on; add images, or a folder val/"
        )


def warn_one_sided(training: dict[str, int], validation: dict[str, int]) -> None:
    """Warns of classes that a division by groups or folds has left on one side alone."""
    for counts, what in ((training, "train"), (validation, "validate")):
        if empty := [name for name, count in counts.items() if not count]:
            terminal.warn(f"no images of {shorten(empty, 3)} to {what} on")


def count_confusion(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts (K, K) from scores (N, K) and labels (N,): row = label, column = highest score."""
    k = scores.shape[1]
    return torch.bincount(labels * k + scores.argmax(dim=1), minlength=k * k).view(k, k)


def label_captions(
    labels: Tensor, classes: list[str], predicted: Tensor | None = None
) -> list[str]:
    """The name of each label; of mixed ones the two largest, as "70% cat" above "30% dog".

    Labels are int64 (N,), or the share of each class, float (N, K). Of the classes that are
    `predicted`, int64 (N,), a wrong one is named below its label.
    """
    if predicted is not None:
        given, found = label_captions(labels, classes), label_captions(predicted, classes)
        return [a if a == b else f"{a}\n→ {b}" for a, b in zip(given, found, strict=True)]
    names = [" ".join(name.split()) for name in classes]  # a caption's line break has a meaning
    if labels.dim() == 1:
        return [names[label] for label in labels.tolist()]
    shares, order = labels.topk(min(2, len(names)), dim=1)
    captions = []
    for parts, indices in zip(shares.tolist(), order.tolist(), strict=True):
        mixed = [f"{p:.0%} {names[i]}" for p, i in zip(parts, indices, strict=True) if p > 0.005]
        captions.append("\n".join(mixed) if len(mixed) > 1 else names[indices[0]])
    return captions
