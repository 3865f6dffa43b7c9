"""Photographs that are pairs: by names that are the same but for a word, or by their shapes."""

import re
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from engine.data.files import folders_in
from engine.errors import BadInput, shorten

# What people call the two sides.
INPUTS = {
    *("input", "inputs", "in", "source", "src", "lr", "lq", "low", "lowres", "lowlight", "noisy"),
    *("blur", "blurry", "blurred", "hazy", "haze", "foggy", "rain", "rainy", "snow", "snowy"),
    *("degraded", "distorted", "damaged", "corrupted", "compressed", "gray", "grey", "sketch"),
}
TARGETS = {
    *("target", "targets", "gt", "groundtruth", "truth", "hr", "hq", "highres", "normal", "high"),
    *("sharp", "clean", "clear", "norain", "nohaze", "output", "outputs", "out", "label", "labels"),
    *("reference", "ref", "original", "orig", "restored", "enhanced", "expert"),
}
FEW = 3  # names that a word in the names of files has to tell apart before it counts
MOST = 10  # words that are tried in twos and threes


class _Name:
    """A path in parts, each with the words in it that may tell the side of a pair."""

    __slots__ = ("folders", "parts", "path", "words")

    def __init__(self, path: str) -> None:
        *folders, file = path.split("/")
        stem, dot, ending = file.rpartition(".")
        self.path = path
        self.folders = [_folder(folder) for folder in folders]
        self.parts = _words(stem)
        self.words = {*self.parts, dot + ending.lower()}.union(*self.folders)

    def without(self, word: str) -> tuple[Any, ...]:
        """What is left of it without a word; the ending of the file never counts."""
        folders = [words for words in self.folders if word not in words]
        return (*folders, *(part for part in self.parts if part != word))


@cache
def _folder(name: str) -> frozenset[str]:
    """A folder as its name, with a slash, and the words in it."""
    return frozenset({f"{name}/", *_words(name)})


def _words(text: str) -> list[str]:
    """Letters and digits apart, also without a sign between them: imgLR2 is img, lr, 2."""
    text = re.sub("(?<=[a-z])(?=[A-Z])", " ", text).lower()
    return re.findall(r"\d+|[^\W\d_]+", text)


def check_names(root: Path, images: list[str]) -> None:
    """Raises BadInput if photographs are pairs by their names.

    They are if a folder of inputs and one of targets lie side by side, or files have the same name
    but for a word of either side; and whatever the words are, if all images are in two or three
    folders with the same names, or all names are the same but for one of two words.
    """
    names = [_Name(path) for path in images]
    inside = [name for name in names if "/" in name.path]
    found = _known_folders(names) or _known_words(names) or _any_words(names) or _any_words(inside)
    if found:
        one, other = found
        raise BadInput(
            f"{root}: {one} and {other} look like input and target; if they are, put all inputs "
            "in A/ and all targets in B/, the two of a pair under one name, else say --degrade "
            "noise"
        )


def check_shapes(root: Path, sizes: list[list[int]]) -> None:
    """Raises BadInput if photographs, each of (height, width), all look like several in one."""
    for times, words in ((2, "twice"), (3, "three times")):
        for along, across in (("wide", "high"), ("high", "wide")):
            ordered = sizes if along == "wide" else [[width, height] for height, width in sizes]
            if any(width != times * height for height, width in ordered):
                continue
            text = f"{root}: each image is {words} as {along} as {across}; "
            if times == 2 and along == "wide":
                text += "if it holds input and target, say --side-by-side"
            else:
                text += "if it holds several, cut them into inputs in A/ and targets in B/"
            raise BadInput(f"{text}, else --no-side-by-side")


def check_sides(root: Path) -> None:
    """Raises BadInput if a split is missing, and folders look like its inputs and targets."""
    split, names = root.name, folders_in(root.parent)
    if split in names:
        return
    sides = [f"{name}/{split}" for name in names if (root.parent / name / split).is_dir()]
    sides = sides or [name for name in names if split in _words(name)]
    if len(sides) > 1:
        raise BadInput(
            f"{root}: no such folder, and there are {shorten(sides, 3)}; if they are inputs and "
            f"targets, move them to {split}/A and {split}/B"
        )


def _known_folders(names: list[_Name]) -> tuple[str, str] | None:
    """Two folders in one place, of which one has the name of inputs and one that of targets."""
    sides: dict[tuple[str, int], str] = {}
    for name in names:
        place = ""
        for folder, words in zip(name.path.split("/"), name.folders, strict=False):
            for side, known in enumerate((INPUTS, TARGETS)):
                if not known.isdisjoint(words):
                    sides.setdefault((place, side), f"{place}{folder}/")
            both = [sides.get((place, side)) for side in range(2)]
            if both[0] and both[1] and both[0] != both[1]:
                return both[0], both[1]
            place += f"{folder}/"
    return None


def _known_words(names: list[_Name]) -> tuple[str, str] | None:
    """Two files of the same name but for a word of either side, if half of all files are so."""
    known = set[str]().union(*(name.words for name in names)) & (INPUTS | TARGETS)
    if not known:
        return None
    rest = {word: {n.without(word): n.path for n in names if word in n.words} for word in known}
    rest[""] = {n.without(""): n.path for n in names if known.isdisjoint(n.words)}
    for one, other in combinations(sorted(rest, key=lambda w: (w not in INPUTS, w)), 2):
        both = rest[one].keys() & rest[other].keys()
        alike = {one, other} <= INPUTS or {one, other} <= TARGETS
        if both and not alike and 4 * len(both) >= len(names):
            first = min(both)
            return rest[one][first], rest[other][first]
    return None


def _any_words(names: list[_Name]) -> tuple[str, str] | None:
    """Two folders, or two files, of which all others are a repetition."""
    counts = Counter(word for name in names for word in name.words)
    for parts in (2, 3):
        words = [word for word, n in counts.items() if n * parts == len(names)]
        # Three folders of numbers are scenes.
        words = [w for w in words if not (w if parts == 2 else w.rstrip("/")).isdigit()]
        words.sort(key=lambda word: (not word.endswith("/"), word))
        for sides in combinations(words[:MOST], parts):
            rest = [{n.without(word): n.path for n in names if word in n.words} for word in sides]
            folders = all(word.endswith("/") for word in sides)
            same = all(one.keys() == rest[0].keys() for one in rest)
            same = same and len({path for one in rest for path in one.values()}) == len(names)
            if same and len(rest[0]) == counts[sides[0]] >= (1 if folders else FEW):
                first = min(rest[0])
                both = [one[first].rpartition("/")[0] + "/" for one in rest]
                return (both[0], both[1]) if folders else (rest[0][first], rest[1][first])
    return None
