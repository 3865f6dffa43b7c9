"""Looks at every image of a data set before a run does.

    python -m tools.check_data my_images
    python -m tools.check_data --help

Lists what would stop a run (exit status 2 if there is any) and what may spoil it: near copies and
equal images in two splits, files that are not used, images that lose something when they are read.
"""

# ruff: noqa: E402
from engine.errors import BAD_INPUT, DONE, BadInput, begin, run_program, shorten

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import hashlib
import os
from argparse import Namespace
from collections.abc import Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image

import dataset
from engine import terminal
from engine.arguments import Parser, add_reading_options, complete_reading
from engine.data import files
from engine.data.images import inspect_image
from engine.data.stored import Form, as_values, read_stored
from engine.devices import cores
from engine.report.grids import as_rgb
from model import Model
from task.checks import (
    DATASET_KEYS,
    FURTHER,
    KIND,
    TARGETS,
    check_split,
    check_together,
    find_splits,
    label,
    used_images,
)
from tools.near_copies import SMALLEST, find_near_copies, small_picture

# Width and height of an image, its digest, its small picture, what is odd about it, its form.
Found = tuple[tuple[int, int], str, np.ndarray | None, list[str], str]
RGB_8 = "RGB"  # the form of all images that are read as such


@dataclass
class Split:
    """What was found in train/, val/ or test/; files by their paths relative to `root`."""

    title: Path  # the folder of that name, also where a table tells the splits
    found: files.Listing
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # width and height, in pixels
    digests: dict[str, list[str]] = field(default_factory=dict)  # equal files, by their content
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # of images that are large enough
    forms: dict[str, str] = field(default_factory=dict)  # channels and depth, each with a file
    summary: str = ""

    @property
    def root(self) -> Path:
        return Path(self.found.root or self.title)


def main() -> int:
    parser = Parser(description="Lists what is wrong with a data set, with file and remedy.")
    default = dataset.BUILT_IN
    parser.add_argument("data", nargs="?", default=default, help="folder with train/ and so on")
    add_reading_options(parser)
    for further in FURTHER:
        further.add_option(parser)
    opt = parser.parse_args()
    folder = dataset.data_dir(opt.data)
    faults, notes = list[str](), list[str]()  # what would stop a run; what may spoil it
    with files.collecting(faults):
        complete_reading(opt, files.read_dataset_json(folder, *DATASET_KEYS))
    splits = []
    for name, found in find_splits(folder, opt, faults, notes).items():
        splits.append(split := Split(name, found))
        read_all(split, opt, faults, notes)
        with files.collecting(faults):
            split.summary = check_split(name, found, split.sizes, faults, notes)
        if found.unused:
            notes.append(f"{split.root}: not used: {shorten(found.unused)}")
    check_forms(splits, faults)
    if splits:
        check_together({split.title: split.found for split in splits}, faults, notes)
    note_twins(splits, notes)
    note_near_copies(splits, notes)
    for further in FURTHER:
        with files.collecting(faults):
            notes[:0] = further.look(opt, folder, Model, dataset.eval_set)
    for split in splits:
        print(describe(split))
    if small := sum(len(split.sizes) - len(split.pictures) for split in splits):
        least = f"{SMALLEST} x {SMALLEST} pixels"
        print(f"near copies: looked for from {least} on; {small:,} are smaller")
    faults = list(dict.fromkeys(faults))  # two splits may say the same
    for title, lines in (("would stop a run", faults), ("worth a look", notes)):
        if lines:
            print("\n  ".join([f"{title}:", *lines]))
    print(f"{count(faults, 'fault')}, {count(notes, 'note')}" if faults + notes else "no problems")
    return BAD_INPUT if faults else DONE


def read_all(split: Split, opt: Namespace, faults: list[str], notes: list[str]) -> None:
    """Decodes the files on all cores (Pillow leaves Python's lock meanwhile), with a bar."""
    used = used_images(split.found)
    paths = [split.root / path for path in used]
    odd: dict[str, list[str]] = {}  # paths by what is odd about these images
    with ThreadPoolExecutor(cores()) as threads:
        results = threads.map(partial(read, opt=opt), paths)
        bar = terminal.bar(results, desc=split.title.name, total=len(paths), unit="image")
        for path, result in zip(used, bar, strict=True):
            if isinstance(result, str):
                faults.append(result)
                continue
            size, digest, picture, remarks, form = result
            split.forms.setdefault(form, path)
            split.sizes[path] = size
            if picture is not None:
                split.pictures[path] = picture
            split.digests.setdefault(digest, []).append(path)
            for remark in remarks:
                odd.setdefault(remark, []).append(path)
    notes += [f"{split.root}: {what}: {shorten(names)}" for what, names in odd.items()]


def read(path: Path, opt: Namespace) -> Found | str:
    """What is known of an image; or what is wrong."""
    try:
        if opt.images == "stored":
            values = read_stored(path, opt.axes)
            form = str(Form(len(values), str(values.dtype).removeprefix("torch.")))
            image, remarks = to_pil_image(as_rgb(as_values(values)).to(torch.uint8)), list[str]()
        else:
            (image, remarks), form = inspect_image(path), RGB_8
        if image.getcolors(1):
            remarks.append("of one colour")
        picture = small_picture(image) if min(image.size) >= SMALLEST else None
        return image.size, hashlib.sha256(path.read_bytes()).hexdigest(), picture, remarks, form
    except BadInput as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error.strerror}"


def check_forms(splits: list[Split], faults: list[str]) -> None:
    """Adds images of unlike channels or depth to what would stop a run: one of each form."""
    forms: dict[str, Path] = {}
    for split in splits:
        for form, name in split.forms.items():
            forms.setdefault(form, split.root / name)
    first = next(iter(forms), "")
    for form, path in forms.items():
        if form != first:
            told = f"{path}: has {form}, and {forms[first]} {first}; all have to be alike"
            faults.append(told)


def note_twins(splits: list[Split], notes: list[str]) -> None:
    """Notes equal files, also by links: in a split, and in two of them."""
    for split in splits:
        for first, *others in split.digests.values():
            for path in others:
                what = harm(splits, split, path, first)
                notes.append(f"{split.root / path}: {same(split, path, split, first)}{what}")
    # Images that were trained on make the metrics of every other split too good.
    for one, other in combinations(splits, 2):
        for digest in other.digests.keys() & one.digests.keys():
            path, twin = other.digests[digest][0], one.digests[digest][0]
            notes.append(f"{other.root / path}: {same(other, path, one, twin)}; delete one of them")


def same(split: Split, path: str, other: Split, twin: str) -> str:
    linked = os.path.samefile(split.root / path, other.root / twin)
    return f"the same file as {other.root / twin}{' (a link)' if linked else ''}"


def harm(splits: list[Split], split: Split, path: str, twin: str) -> str:
    """What two images that are the same do in a split."""
    if label(path) != label(twin):
        return f", in another {KIND}; keep one"
    if split is splits[0] and all(one.title.name != "val" for one in splits):  # train/ is divided
        return "; one may be trained on and the other validated on; keep one"
    return "; it counts twice"


def note_near_copies(splits: list[Split], notes: list[str]) -> None:
    """Puts near copies in two splits before all other notes, and those in one split behind.

    Targets are not compared, nor named what is the same file. An image is named once for each
    split in which it has near copies, with the one that is most like it.
    """
    shown = [(s, path) for s in splits for path in s.pictures if not path.startswith(TARGETS)]
    if len(shown) < 2:
        return
    digests = {(id(s), p): digest for s in splits for digest, ps in s.digests.items() for p in ps}
    found = find_near_copies(np.stack([split.pictures[path] for split, path in shown]))
    between: dict[tuple[Path, Path], dict[str, str]] = {}  # by the splits' folders, then the image
    within: dict[Path, dict[str, str]] = {}
    for i in (-found.correlation).argsort(kind="stable").tolist():
        (one, twin), (other, path) = shown[found.first[i]], shown[found.second[i]]
        if digests[id(one), twin] == digests[id(other), path]:
            continue
        what = "mirrored near copy" if found.mirrored[i] else "near copy"
        line = f"{other.root / path}: a {what} of {one.root / twin} ({found.correlation[i]:.3f})"
        if one is other:
            line += harm(splits, one, path, twin)
            within.setdefault(one.title, {}).setdefault(path, line)
        else:
            between.setdefault((other.title, one.title), {}).setdefault(path, line)
    leading = []
    for (root, source), lines in between.items():
        total = count(lines, "image")
        text = f"with a near copy in {source}, which makes metrics too good; delete one of each two"
        leading += [f"{root}: {total} {text}", *sorted(lines.values())]
    notes[:0] = leading
    for root, lines in within.items():
        notes.append(f"{root}: {count(lines, 'image')} with a near copy in the same split")
        notes += sorted(lines.values())


def describe(split: Split) -> str:
    """Counts and sizes of a split in a few lines."""
    lines = [f"{split.title}: {len(used_images(split.found))} images{split.summary}"]
    lines += [f"  channels and depth: {form}" for form in split.forms if form != RGB_8]
    if split.sizes:
        for side, name in enumerate(("width", "height")):
            pixels = [size[side] for size in split.sizes.values()]
            lines += [f"  {name}: {min(pixels)} to {max(pixels)} pixels, median {median(pixels):g}"]
    return "\n".join(lines)


def count(lines: Sized, name: str) -> str:
    return f"{len(lines)} {name}{'s' * (len(lines) != 1)}"


if __name__ == "__main__":
    run_program(main)
