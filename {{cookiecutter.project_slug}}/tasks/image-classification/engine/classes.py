"""Folders of classes: their names, and whether they fit."""

import os
from pathlib import Path

from engine.errors import BadInput, shorten
from engine.images import check_split, is_hidden


def find_classes(root: Path) -> list[str]:
    """The names of the class folders in `root`, sorted.

    Raises:
        BadInput: There is no such folder, or no class in it.
    """
    check_split(root)
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    classes = sorted(name for name in folders if not is_hidden(name))
    if not classes:
        raise BadInput(f"{root}: no class folders; each class is a folder with its images")
    return classes


def check_classes(root: Path, found: list[str], expected: list[str]) -> None:
    """Raises BadInput unless the classes found in `root` are those of training."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise BadInput(
            f"{root}: its class folders must be those of training; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )


def check_divisible(root: Path, counts: dict[str, int]) -> None:
    """Raises BadInput if a class has only one image, which cannot be on both sides of a split."""
    if alone := [name for name, count in counts.items() if count == 1]:
        raise BadInput(
            f"{root}: only one image in {shorten(alone)}, and one is needed to train on and one "
            "to validate on; add images, or a folder val/"
        )
