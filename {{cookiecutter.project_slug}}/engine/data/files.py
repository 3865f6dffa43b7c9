"""Files: which of them are images, lists of them, and what of a data folder is not used."""

import errno
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine import terminal
from engine.errors import BadInput, shorten

# A fixed list: which files a data set has does not depend on the version of Pillow.
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp"),
    *(".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi", ".pcx"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
)
# What Windows, macOS, Linux and network drives put into folders by themselves, in lower case.
SERVICE = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "icon\r", "network trash folder", "temporary items", "lost+found"),
    *("@eadir", "@synoeastream", "@synoresource", "@tmp", "@recycle", "@recently-snapshot"),
    *("#recycle", "#snapshot", "__pycache__", "~snapshot", "_gsdata_", "recycler", "lost.dir"),
    *("found.000", "@sharebin", "_vti_cnf", "cvs"),
}
SPLITS = ("train", "val", "test")
NEARLY = {  # what else people call them, without capitals, digits, signs and a final "set"
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "tests", "testing", "tst"),
}
ABOUT = re.compile(r"(readme|licen[cs]e|copying|citation)([._-].*)?", re.IGNORECASE)  # the data
DESCRIPTION = ("name", "source", "licence", "license", "authors", "description", "url")
# Errors of the system that are about the path; the others are those of the machine.
OF_THE_PATH = {
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.EISDIR: "is a folder",
    errno.ENOTDIR: "a part of this path is a file",
    errno.ELOOP: "a link that leads to itself",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EINVAL: "damaged",
    errno.ENXIO: "no file that can be read",
}


class Listing(NamedTuple):
    """What lies below a folder, as paths relative to it, with slashes; nothing that is hidden."""

    folders: list[str]  # those directly in it
    images: Sequence[str]  # in a fixed order
    unused: list[str]  # other files, and folders that were met before, with the reason
    entered: dict[Any, str]  # the path of each folder that was read, by what it really is
    inodes: np.ndarray  # of the images, or of what they are links to
    root: str = ""

    def for_workers(self) -> "Listing":
        """The same, whose names of images are not copied into each worker process."""
        return self._replace(images=SerializedList(self.images))


def nothing(root: str | Path = "") -> Listing:
    """The listing of an empty folder."""
    return Listing([], [], [], {}, np.zeros(0, np.uint64), str(root))


def list_images(root: str | Path, more: tuple[str, ...] = ()) -> Listing:
    """The images below a folder, if there is one. Links are followed; no folder is read twice.

    Files that end in one of `more` are images, too.

    Raises:
        BadInput: A folder may not be read.
        OSError: The machine failed.
    """
    if not os.path.isdir(root):
        return nothing()
    entered: dict[Any, str] = {}
    # By the folder, whose path ends with a slash.
    files: dict[str, list[str]] = {}
    inodes: dict[str, list[int]] = {}
    top, unused = list[str](), list[str]()
    elsewhere = {identity(path): str(path) for path in _elsewhere(Path(root))}
    # Real folders before links: a folder that has both counts where it really is.
    folders, links = [""], list[str]()
    while folders or links:
        linked = not folders
        place = links.pop(0) if linked else folders.pop()
        path = os.path.join(root, place)
        key = identity(path)
        if known := entered.get(key) or (linked and elsewhere.get(key)):
            unused.append(f"{place} (the same folder as {known})")
            continue
        entered[key] = path.rstrip("/")
        files[place], inodes[place], real, new, others = _look_into(path, place, ENDINGS + more)
        top = top if place else sorted(real + new)
        folders += real
        links = sorted(links + new) if new else links
        unused += others
    # The files of a folder, then those of its subfolders.
    places = sorted(files)
    images = [place + name for place in places for name in files[place]]
    numbers = np.array([number for place in places for number in inodes[place]], np.uint64)
    unused.sort(key=lambda name: (not name.endswith(")"), name))  # those with a reason first
    return Listing([name[:-1] for name in top], images, unused, entered, numbers, str(root))


def _elsewhere(root: Path) -> Iterator[Path]:
    """The folders to which no link may lead: those above, the other splits and their classes."""
    yield from Path(os.path.realpath(root)).parents
    for split in SPLITS if root.name in SPLITS else ():
        other = root.parent / split
        if split != root.name and other.is_dir():
            yield from (other, *(other / name for name in folders_in(other)))


def _look_into(
    path: str, place: str, endings: tuple[str, ...]
) -> tuple[list[str], list[int], list[str], list[str], list[str]]:
    """The images, their inodes, folders, links to folders and other files in a folder."""
    names, inodes = list[str](), list[int]()
    real, linked, others = list[str](), list[str](), list[str]()
    for entry in _scan(path):
        link = entry.is_symlink()
        if _is_folder(entry):
            (linked if link else real).append(f"{place}{entry.name}/")
        elif is_image(entry.name, endings) and (link or entry.is_file()):
            names.append(entry.name)
            inodes.append(_linked_inode(entry) if link else entry.inode())  # opens no file
        elif not ABOUT.fullmatch(entry.name):  # also pipes and devices, which would be waited for
            others.append(place + entry.name)
    return names, inodes, real, linked, others


def _linked_inode(entry: os.DirEntry[str]) -> int:
    with suppress(OSError):  # it leads to nowhere
        return entry.stat().st_ino
    return entry.inode()


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, sorted by the names."""
    try:
        entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    except OSError as error:
        raise reading_failed(folder, error) from None
    return sorted(entries, key=lambda entry: entry.name)


def images_below(folder: str | Path, more: tuple[str, ...] = ()) -> list[str]:
    """The paths of all images in a folder and its subfolders; see list_images."""
    return [os.path.join(folder, path) for path in list_images(folder, more).images]


def warn_shared(one: Listing, other: Listing) -> None:
    """Warns, in one line, of folders or images that are in two splits, by links."""
    both = one.entered.keys() & other.entered.keys()
    shared = sorted((one.entered[key], other.entered[key]) for key in both)
    inside = os.path.join(one.root, "")
    shared = shared or [
        (first, second)
        for first, second in linked_images(one, other)
        if first.startswith(inside) and not second.startswith(inside)
    ]
    if shared:
        told = shorten([f"{second} is {first}" for first, second in shared], 3)
        terminal.warn(f"the same images in two splits: {told}")


def linked_images(*listings: Listing) -> list[tuple[str, str]]:
    """The paths of each two images that are one file, by links; no other file is looked at."""
    inodes = np.concatenate([found.inodes for found in listings])
    order = np.argsort(inodes, kind="stable")
    alike = np.flatnonzero(np.diff(inodes[order]) == 0)
    if not len(alike):
        return []
    paths = [os.path.join(found.root, path) for found in listings for path in found.images]
    pairs = ((paths[order[i]], paths[order[i + 1]]) for i in alike)
    # Two file systems may have one number each, and some number nothing.
    return [pair for pair in pairs if identity(pair[0]) == identity(pair[1])]


def identity(path: str | Path) -> Any:
    """The same for all names of one file or folder, also on disks that do not tell a from A."""
    status = os.stat(path)
    # Some file systems of networks number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _is_folder(entry: os.DirEntry) -> bool:
    # Of a link that leads to itself `is_dir` raises an error.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_image(path: str | Path, endings: tuple[str, ...] = ENDINGS) -> bool:
    """Whether a file counts as an image, by its name."""
    return not is_hidden(path) and str(path).lower().endswith(endings)


def is_hidden(path: str | Path) -> bool:
    """Whether a file or a folder is what Unix hides, or what systems make for themselves."""
    name = os.path.basename(path)
    return name.startswith((".", "~$")) or name.lower() in SERVICE


def reading_failed(path: str | Path, error: OSError) -> Exception:
    """What to raise for an error of the system: BadInput if the path is wrong, else an OSError."""
    to_nowhere = error.errno == errno.ENOENT and os.path.islink(path)
    if reason := "a link to nowhere" if to_nowhere else OF_THE_PATH.get(error.errno or 0):
        return BadInput(f"{path}: not readable: {reason}; replace or remove it")
    return OSError(error.errno, error.strerror or str(error), str(path))


def read_dataset_json(folder: Path, *own: str) -> dict:
    """The content of dataset.json in a folder of images; empty if there is no such file.

    `"flip": false` in it turns random flips off, for letters and the like; "images" and "axes" are
    those of engine.arguments.complete_reading.

    Args:
        folder: That of the splits.
        own: The keys that have a meaning for a task, besides these and those of DESCRIPTION.

    Raises:
        BadInput: The file cannot be read, has another key, or `flip` is neither true nor false.
    """
    path = folder / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error}); fix or delete it") from None
    if not isinstance(content, dict) or not isinstance(content.get("flip", True), bool):
        raise BadInput(f"{path}: must be an object whose flip is true or false; fix or delete it")
    known = ("flip", "images", "axes", *own, *DESCRIPTION)
    if unknown := [repr(key) for key in content if key not in known]:
        raise BadInput(f"{path}: unknown: {shorten(unknown, 3)}; known: {', '.join(known)}; fix it")
    return content


def choose_flip(opt: Namespace, told: bool | None, folder: Path, argv: list[str] | None) -> bool:
    """Whether images are mirrored: as an option says, else as `told` by dataset.json, else yes.

    Of an option that says something else than dataset.json a warning is given, if it comes from a
    file of options, which may have been written for other images; not of a resumed run's own.
    """
    typed = {"--flip", "--no-flip"} & {*(sys.argv[1:] if argv is None else argv)}
    if None not in (opt.flip, told) and opt.flip != told and not typed and not opt.resume:
        option = "--flip" if opt.flip else "--no-flip"
        terminal.warn(f'{option} is obeyed, though {folder / "dataset.json"} says the opposite')
    chosen = told if opt.flip is None else opt.flip
    return chosen is not False


def check_split(root: Path) -> None:
    """Raises BadInput unless the folder of a split, such as DIR/train, is there."""
    if root.is_dir():
        return
    text = f"{root}: no such folder; --data wants a folder that holds {root.name}/"
    entries = folders_in(root.parent)
    if near := [name for name in entries if nearly(name) == root.name]:
        text += f"; rename {near[0]} to {root.name}"
    elif deeper := [name for name in entries if (root.parent / name / root.name).is_dir()]:
        text += f", as {root.parent / deeper[0]} does"
    elif root.name == "test":
        text += "; test.py --split val needs none"
    elif entries:
        text += f", and this one holds {shorten([f'{name}/' for name in entries], 3)}"
    raise BadInput(text)


def nearly(name: str) -> str | None:
    """The split that a folder is probably meant to be, which is called otherwise."""
    letters = re.sub("[^a-z]", "", name.lower())
    letters = letters.removesuffix("images").removesuffix("data").removesuffix("set")
    return next((split for split in SPLITS if letters in NEARLY[split] and name != split), None)


def list_splits(
    folder: Path, notes: list[str], more: tuple[str, ...] = ()
) -> dict[Path, Listing]:
    """What lies in train/, and in val/ and test/ if they are there; adds what is not used."""
    if folder.is_dir():
        notes += [f"{folder}: not used: {name}" for name in unused_in(folder)]
    if not (folder / "test").is_dir():
        notes.append(f"{folder / 'test'}: no such folder; test.py will need it")
    there = [name for name in SPLITS if name == "train" or (folder / name).is_dir()]
    return {folder / name: list_images(folder / name, more) for name in there}


def unused_in(folder: Path) -> list[str]:
    """What lies in the folder of the splits and is not one, nor about the data; hints first."""
    hints, others, entries = [], [], _scan(folder)
    names = {entry.name for entry in entries}
    for entry in entries:
        split = nearly(entry.name) if _is_folder(entry) else None
        if split and split not in names:
            hints.append(f"{entry.name}/ (rename it {split} if it is that)")
        elif entry.name.lower() == "dataset.json" != entry.name:
            hints.append(f"{entry.name} (rename it dataset.json)")
        elif not (entry.name in (*SPLITS, "dataset.json") or ABOUT.fullmatch(entry.name)):
            others.append(entry.name + "/" * _is_folder(entry))
    return hints + others


@contextmanager
def collecting(lines: list[str]) -> Iterator[None]:
    """Adds the text of a BadInput that is raised inside to the lines."""
    try:
        yield
    except BadInput as error:
        lines.append(str(error))


def warn_unused(folder: Path, *splits: Listing) -> None:
    """Names, in one line, what lies in the folder of the splits, or in these, and is not used."""
    names = [f"{os.path.basename(split.root)}/{name}" for split in splits for name in split.unused]
    if names := unused_in(folder) + names:
        terminal.warn(f"{folder}: not used: {shorten(names, 3)}")


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder that are not hidden, sorted; none if it is no folder."""
    entries = _scan(folder) if folder.is_dir() else []
    return [entry.name for entry in entries if _is_folder(entry)]


class SerializedList(Sequence[str]):
    """An immutable list of strings, kept as one block of bytes and the places where they end.

    A forked worker shares its parent's memory until one of the two writes to it. Reading an object
    of Python changes its reference count, so workers that read a million paths from a list would
    each end up with a copy of them (pytorch #13246).
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:  # without it each would take three times as long
        for start, end in pairwise(self._ends):
            yield self._bytes[start:end].decode("utf-8", "surrogatepass")

    def __getitem__(self, index: Any) -> Any:  # a string for an integer, a list for a slice
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[i] for i in chosen]
        start, end = self._ends[chosen : chosen + 2]
        return self._bytes[start:end].decode("utf-8", "surrogatepass")

    def digest(self) -> bytes:
        """All strings and their lengths as bytes, which differ for any two lists."""
        return self._ends[1:].tobytes() + self._bytes
