"""Folders of classes: their names, and whether they fit; labels as text."""

import os
from pathlib import Path

import torch
from torch import Tensor

from engine.data.images import check_split, is_hidden
from engine.errors import BadInput, shorten


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


def count_confusion(scores: Tensor, labels: Tensor) -> Tensor:
    """Counts (K, K): row = label, column = class of the highest score.

    Args:
        scores: (N, K).
        labels: int64 (N,).
    """
    k = scores.shape[1]
    return torch.bincount(labels * k + scores.argmax(dim=1), minlength=k * k).view(k, k)


def label_captions(
    labels: Tensor, classes: list[str], predicted: Tensor | None = None
) -> list[str]:
    """The name of each label; of mixed ones the two largest, as "70% cat" above "30% dog".

    Args:
        labels: int64 (N,), or the share of each class, float (N, K).
        classes: The K names.
        predicted: int64 (N,); a wrong one is named below its label.
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
        percent = zip((round(100 * part) for part in parts), indices, strict=True)
        lines = [f"{part}% {names[i]}" for part, i in percent if part > 0]
        captions.append("\n".join(lines) if len(lines) > 1 else names[indices[0]])
    return captions
