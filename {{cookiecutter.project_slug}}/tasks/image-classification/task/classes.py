"""Folders of classes: their names and images, and whether they fit; labels as text."""

import os
import unicodedata
from pathlib import Path

import torch
from torch import Tensor

from engine import terminal
from engine.data.files import ENDINGS, Listing, check_split, linked_images, list_images
from engine.errors import BadInput, shorten
from task import other_tasks


def list_classes(
    root: Path, known: list[str] | None = None
) -> tuple[dict[str, list[str]], Listing]:
    """The images of each class in `root`, sorted, and all that was found.

    Of the classes of training, `known`, some may have no image here, which is warned of.

    Raises:
        BadInput: There is no such folder, no class in it, a class alone or without images, one
            that training does not know, or folders of another task.
    """
    check_split(root)
    listing = list_images(root)
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
        raise BadInput(
            f"{root}: its class folders must be those of training; missing: {next(lists)}; "
            f"unknown: {next(lists)}"
            + ("".join(hints[:3]) or "; predict.py takes images of other classes" * bool(unknown))
        )


def difference(one: str, other: str) -> str:
    """By what two names differ that look alike: Unicode form, blanks, case; else nothing."""
    if one == other or simple(one) != simple(other):
        return ""
    kinds = ("Unicode form", "blanks", "case")
    found = [kind for kind in kinds if simple(one, kind) != simple(other, kind)]
    return " and ".join(found) or "characters that look alike"


def simple(name: str, but: str = "") -> str:
    """A name in one Unicode form, without blanks and capitals, but for one of these changes."""
    name = name if but == "Unicode form" else unicodedata.normalize("NFKC", name)
    name = name if but == "blanks" else "".join(name.split())
    return name if but == "case" else name.casefold()


def check_divisible(root: Path, counts: dict[str, int]) -> None:
    """Raises BadInput if a class has only one image, which cannot be on both sides of a split."""
    if alone := [name for name, count in counts.items() if count == 1]:
        raise BadInput(
            f"{root}: only one image in {shorten(alone)}, and one is needed to train on and one "
            "to validate on; add images, or a folder val/"
        )


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
