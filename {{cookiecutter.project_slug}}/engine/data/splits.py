"""Which samples are validated on: by a hash of the name of each, or of the group that it is in."""

import hashlib
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from engine.errors import BadInput, shorten

T = TypeVar("T")


def set_aside(
    opt: Namespace,
    root: Path,
    names: Sequence[str],
    strata: Sequence[int],
    groups: Sequence[str] | None = None,
) -> list[bool]:
    """Which samples of a folder are validated on: about `--val-share` of them, or a `--fold`.

    Args:
        opt: The options.
        root: The folder, for messages.
        names: Such as paths relative to it.
        strata: As in `split_by_hash`.
        groups: As in `split_by_hash`.

    Raises:
        BadInput: There are too few names or groups to divide.
    """
    number, folds = read_fold(opt.fold) if opt.fold else (1, 2)
    what, found = ("groups", {*groups}) if groups is not None else ("images", {*names})
    if len(found) < folds:
        cause = f"--fold {opt.fold}: " if opt.fold else ""
        some = f" ({shorten(sorted(found), 3)})" if groups is not None else ""
        raise BadInput(
            f"{cause}{root}: {len(found)} {what}{some}, and {folds} or more are needed to train on "
            "some and to validate on others; add images" + ", or a folder val/" * (not cause)
        )
    if opt.fold:
        return [fold == number for fold in deal_folds(names, strata, folds, groups)]
    return split_by_hash(names, strata, opt.val_share, groups)


def split_by_hash(
    names: Iterable[str],
    strata: Sequence[int],
    share: float,
    groups: Sequence[str] | None = None,
) -> list[bool]:
    """Chooses about `share` of the names of each stratum, by a hash of the name.

    Adding names changes no choice, unless a stratum would be chosen whole or not at all: then its
    name with the highest hash is left, or that with the lowest is chosen.

    Args:
        names: Such as relative paths.
        strata: A number for each name, such as its class; each number stands at least twice.
        share: In (0, 1).
        groups: The name of the group of each, at least two. Groups are chosen then in the place of
            names, whole, and whatever the strata are.

    Returns:
        Whether each name is chosen.
    """
    if groups is not None:
        return _whole(groups, lambda names: split_by_hash(names, [0] * len(names), share))
    hashes = [_hash(name) for name in names]
    rows: dict[int, list[int]] = {}
    for i in sorted(range(len(hashes)), key=hashes.__getitem__):
        rows.setdefault(strata[i], []).append(i)
    chosen = [value < share for value in hashes]
    for own in rows.values():
        chosen[own[0]], chosen[own[-1]] = True, False
    return chosen


def deal_folds(
    names: Iterable[str],
    strata: Sequence[int],
    folds: int,
    groups: Sequence[str] | None = None,
) -> list[int]:
    """The fold of each name, from 1 on: dealt like cards, in the order of the hashes.

    Each fold gets as many names of each stratum as another, or one more; with `groups` as many
    groups. Arguments as in `split_by_hash`.
    """
    if groups is not None:
        return _whole(groups, lambda names: deal_folds(names, [0] * len(names), folds))
    keys = [(strata[i], _hash(name)) for i, name in enumerate(names)]
    found = [0] * len(keys)
    for place, i in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
        found[i] = 1 + place % folds
    return found


def _whole(groups: Sequence[str], decide: Callable[[list[str]], list[T]]) -> list[T]:
    """What is decided of the names of groups, for each of their members."""
    names = list(dict.fromkeys(groups))
    decided = dict(zip(names, decide(names), strict=True))
    return [decided[group] for group in groups]


def _hash(name: str) -> float:
    """A number in [0, 1) made from a name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def read_fold(text: str) -> tuple[int, int]:
    """The two numbers of `--fold`: 2/5 is the second of five; ValueError if it is no such text."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    number, folds = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= folds or folds < 2:
        raise ValueError(text)
    return number, folds


def without_groups(opt: Namespace) -> Namespace:
    """The options for images that are not divided, whose paths need not match `--group`."""
    return Namespace(**{**vars(opt), "group": None})


def find_groups(opt: Namespace, paths: Iterable[str]) -> list[str] | None:
    """The group of each path, by the pattern `--group`; None without it.

    It is searched in the path, and its first match group is the name; without one the whole match.

    Raises:
        BadInput: A path has no match.
    """
    if opt.group is None:
        return None
    pattern, groups, without = re.compile(opt.group), list[str](), list[str]()
    for path in paths:
        found = pattern.search(path)
        name = found and found[min(1, pattern.groups)]
        groups.append(name or "")
        if not name:
            without.append(path)
    if without:
        raise BadInput(
            f"--group {opt.group}: no match in {shorten(without, 3)}; write a pattern that finds "
            "the group of each path below --data"
        )
    return groups


def check_apart(named: dict[str, Sequence[str] | None]) -> None:
    """Raises BadInput if a group is in two splits; `named` has the groups by the split."""
    home: dict[str, str] = {}
    for split, groups in named.items():
        for group in dict.fromkeys(groups or ()):
            if group in home:
                raise BadInput(
                    f"{split}: the group {group} is in {home[group]} too; move all of it to one"
                )
        home.update(dict.fromkeys(groups or (), split))


def check_folds(names: Sequence[str]) -> None:
    """Raises BadInput if folds, whose images have these names together, are not disjoint."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadInput(
            f"{twice[0]}: is in several folds; let train_and_val in dataset.py divide images by "
            "set_aside of engine/data/splits.py"
        )


def refuse_fold(opt: Namespace, validation: object) -> None:
    """Raises BadInput if there is a `--fold` beside images that are for validation anyway."""
    if opt.fold:
        raise BadInput(
            f"--fold {opt.fold}: {validation} is there, and a fold is a part of train/; leave out "
            "--fold, or move these images to train/"
        )
