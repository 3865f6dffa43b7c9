"""Looks at every image of a data set before a run does.

    python -m tools.check_data my_images

Lists what would stop a run (exit status 2 if there is any) and what may spoil it: files that are
left out, images that are in both parts, classes of very different size.
"""

import engine.errors  # noqa: F401  first: Ctrl-C ends in one line from here on

# isort: split
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tqdm import tqdm

import dataset
from engine import images
from engine.arguments import Parser
from engine.devices import cores
from engine.errors import BAD_INPUT, DONE, BadInput, run_program

UNBALANCED = 10  # the largest class over the smallest from which on it is worth a word


@dataclass
class Part:
    """What was found in train/ or test/."""

    root: Path
    counts: dict[str, int] = field(default_factory=dict)  # images of each class
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width and height, in pixels
    digests: dict[str, Path] = field(default_factory=dict)  # of the bytes of each file
    faults: list[str] = field(default_factory=list)  # what would stop a run
    notes: list[str] = field(default_factory=list)  # what may spoil it


def main() -> int:
    parser = Parser(description="Lists what is wrong with a data set, with file and remedy.")
    default = dataset.BUILT_IN
    parser.add_argument("data", nargs="?", default=default, help="folder with train/ and test/")
    folder = dataset.data_dir(parser.parse_args().data)
    train, test = (check_part(folder / name) for name in ("train", "test"))
    faults = [*train.faults, *test.faults]
    try:
        images.read_dataset_json(folder)
    except BadInput as error:
        faults.append(str(error))
    notes = [*train.notes, *test.notes]
    if train.counts and test.counts:
        faults += compare_classes(train, test)
        notes += find_leaks(train, test)
    for part in (train, test):
        print(describe(part))
    show("would stop a run", faults)
    show("worth a look", notes)
    print(f"{count(faults, 'fault')}, {count(notes, 'note')}" if faults + notes else "no problems")
    return BAD_INPUT if faults else DONE


def check_part(root: Path) -> Part:
    """Reads every file below `root`, and notes all that is wrong instead of the first alone."""
    part = Part(root)
    if not root.is_dir():
        part.faults.append(f"{root}: no such folder; a data set has train/ and test/")
        return part
    files: list[tuple[str, Path]] = []
    for folder in sorted(path for path in root.iterdir() if not images.is_hidden(path)):
        if folder.is_file():
            part.notes.append(f"{folder}: not in a class folder, left out; move or delete it")
            continue
        inside = [Path(path) for path in images.files_below(folder)]
        wanted = [path for path in inside if images.is_image(path)]
        part.notes += [
            f"{path}: not an image by its name, left out; convert or delete it"
            for path in inside
            if not images.is_image(path)
        ]
        part.counts[folder.name] = len(wanted)
        files += [(folder.name, path) for path in wanted]
        if not wanted:
            part.faults.append(f"{folder}: no image in this class; add some or delete the folder")
    if not part.counts:
        part.faults.append(f"{root}: no class folders; each class is a folder with its images")
    read_all(part, files)
    counts = part.counts.values()
    if len(counts) > 1 and max(counts) > UNBALANCED * min(counts) > 0:
        part.notes.append(
            f"{root}: the largest class has {max(counts)} images and the smallest {min(counts)}; "
            "train.py --balance weights them alike"
        )
    if len(counts) == 1:
        part.notes.append(f"{root}: one class alone; there is nothing to tell apart")
    return part


def read_all(part: Part, files: list[tuple[str, Path]]) -> None:
    """Decodes the files on all cores (Pillow leaves Python's lock meanwhile), with a bar."""
    with ThreadPoolExecutor(cores()) as threads:
        results = threads.map(read, (path for _, path in files))
        for (label, path), result in tqdm(
            zip(files, results, strict=True), part.root.name, len(files), unit="image", disable=None
        ):
            if isinstance(result, str):
                part.faults.append(result)
                continue
            size, digest = result
            part.sizes.append(size)
            twin = part.digests.setdefault(digest, path)
            if twin.parent != path.parent and label not in twin.relative_to(part.root).parts:
                part.notes.append(f"{path}: the same file as {twin}, in another class; keep one")


def read(path: Path) -> tuple[tuple[int, int], str] | str:
    """The size and a digest of an image, or what is wrong with it."""
    try:
        return images.read_image(path).size, hashlib.sha256(path.read_bytes()).hexdigest()
    except BadInput as error:
        return str(error)


def compare_classes(train: Part, test: Part) -> list[str]:
    return [
        f"{missing.root}: has no class folder {name}, which {other.root} has; add or delete it"
        for missing, other in ((train, test), (test, train))
        for name in other.counts
        if name not in missing.counts
    ]


def find_leaks(train: Part, test: Part) -> list[str]:
    """Test images that were trained on make every metric too good."""
    return [
        f"{path}: the same file as {train.digests[digest]}; delete one of them"
        for digest, path in test.digests.items()
        if digest in train.digests
    ]


def describe(part: Part) -> str:
    total = sum(part.counts.values())
    lines = [f"{part.root}: {total} images in {len(part.counts)} classes"]
    width = max(map(len, part.counts), default=0)
    for name, count in part.counts.items():
        lines += [f"  {name:{width}}  {count:7}  {count / max(total, 1):6.1%}"]
    if part.sizes:
        for side, pixels in zip(("width", "height"), zip(*part.sizes, strict=True), strict=True):
            middle = median(pixels)
            lines += [f"  {side}: {min(pixels)} to {max(pixels)} pixels, median {middle:g}"]
    return "\n".join(lines)


def count(problems: list[str], name: str) -> str:
    return f"{len(problems)} {name}{'s' * (len(problems) != 1)}"


def show(title: str, problems: list[str]) -> None:
    if problems:
        print(f"{title}:")
        print("\n".join(f"  {problem}" for problem in problems))


if __name__ == "__main__":
    run_program(main)
