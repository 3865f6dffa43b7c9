"""Looks at every image of a data set before a run does.

    python -m tools.check_data my_images

Lists what would stop a run (exit status 2 if there is any) and what may spoil it: files that are
not used, equal images in two splits, images that lose something when they are read.
"""

# ruff: noqa: E402
from engine.errors import BAD_INPUT, DONE, BadInput, begin, run_program, shorten

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

import dataset
from engine import terminal
from engine.arguments import Parser
from engine.data import files
from engine.data.images import inspect_image
from engine.devices import cores
from task.checks import DATASET_KEYS, KIND, check_split, check_together, label, used_images


@dataclass
class Split:
    """What was found in train/, val/ or test/; files by their paths relative to `root`."""

    root: Path
    found: files.Listing
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # width and height, in pixels
    digests: dict[str, list[str]] = field(default_factory=dict)  # equal files, by their content
    summary: str = ""


def main() -> int:
    parser = Parser(description="Lists what is wrong with a data set, with file and remedy.")
    default = dataset.BUILT_IN
    parser.add_argument("data", nargs="?", default=default, help="folder with train/ and so on")
    folder = dataset.data_dir(parser.parse_args().data)
    faults, notes = list[str](), list[str]()  # what would stop a run; what may spoil it
    names = [name for name in files.SPLITS if name == "train" or (folder / name).is_dir()]
    if folder.is_dir():
        notes += [f"{folder}: not used: {name}" for name in files.unused_in(folder)]
    if "test" not in names:
        notes.append(f"{folder / 'test'}: no such folder; test.py will need it")

    splits = []
    for name in names:
        splits.append(split := Split(folder / name, files.list_images(folder / name)))
        read_all(split, faults, notes)
        with files.collecting(faults):
            split.summary = check_split(split.root, split.found, split.sizes, faults, notes)
        if split.found.unused:
            notes.append(f"{split.root}: not used: {shorten(split.found.unused)}")
    with files.collecting(faults):
        files.read_dataset_json(folder, *DATASET_KEYS)
    check_together({split.root: split.found for split in splits}, faults, notes)
    note_twins(splits, notes)
    for split in splits:
        print(describe(split))
    faults = list(dict.fromkeys(faults))  # two splits may say the same
    for title, lines in (("would stop a run", faults), ("worth a look", notes)):
        if lines:
            print("\n  ".join([f"{title}:", *lines]))
    print(f"{count(faults, 'fault')}, {count(notes, 'note')}" if faults + notes else "no problems")
    return BAD_INPUT if faults else DONE


def read_all(split: Split, faults: list[str], notes: list[str]) -> None:
    """Decodes the files on all cores (Pillow leaves Python's lock meanwhile), with a bar."""
    used = used_images(split.found)
    paths = [split.root / path for path in used]
    odd: dict[str, list[str]] = {}  # paths by what is odd about these images
    with ThreadPoolExecutor(cores()) as threads:
        results = threads.map(read, paths)
        bar = terminal.bar(results, desc=split.root.name, total=len(paths), unit="image")
        for path, result in zip(used, bar, strict=True):
            if isinstance(result, str):
                faults.append(result)
                continue
            size, digest, remarks = result
            split.sizes[path] = size
            split.digests.setdefault(digest, []).append(path)
            for remark in remarks:
                odd.setdefault(remark, []).append(path)
    notes += [f"{split.root}: {what}: {shorten(names)}" for what, names in odd.items()]


def read(path: Path) -> tuple[tuple[int, int], str, list[str]] | str:
    """The size and a digest of an image, and what is odd about it; or what is wrong with it."""
    try:
        image, remarks = inspect_image(path)
        if image.getcolors(1):
            remarks.append("of one colour")
        return image.size, hashlib.sha256(path.read_bytes()).hexdigest(), remarks
    except BadInput as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}"


def note_twins(splits: list[Split], notes: list[str]) -> None:
    """Notes equal files, also by links: in a split, and in two of them."""
    divided = all(split.root.name != "val" for split in splits)  # train/, to validate on a part
    for split in splits:
        for first, *others in split.digests.values():
            for path in others:
                if label(path) != label(first):
                    what = f", in another {KIND}; keep one"
                elif divided and split is splits[0]:
                    what = "; one may be trained on and the other validated on; keep one"
                else:
                    what = "; it counts twice"
                notes.append(f"{split.root / path}: {same(split, path, split, first)}{what}")
    # Images that were trained on make the metrics of every other split too good.
    for one, other in combinations(splits, 2):
        for digest in other.digests.keys() & one.digests.keys():
            path, twin = other.digests[digest][0], one.digests[digest][0]
            notes.append(f"{other.root / path}: {same(other, path, one, twin)}; delete one of them")


def same(split: Split, path: str, other: Split, twin: str) -> str:
    linked = os.path.samefile(split.root / path, other.root / twin)
    return f"the same file as {other.root / twin}{' (a link)' if linked else ''}"


def describe(split: Split) -> str:
    """Counts and sizes of a split in a few lines."""
    lines = [f"{split.root}: {len(used_images(split.found))} images{split.summary}"]
    if split.sizes:
        for side, name in enumerate(("width", "height")):
            pixels = [size[side] for size in split.sizes.values()]
            lines += [f"  {name}: {min(pixels)} to {max(pixels)} pixels, median {median(pixels):g}"]
    return "\n".join(lines)


def count(lines: list[str], name: str) -> str:
    return f"{len(lines)} {name}{'s' * (len(lines) != 1)}"


if __name__ == "__main__":
    run_program(main)
