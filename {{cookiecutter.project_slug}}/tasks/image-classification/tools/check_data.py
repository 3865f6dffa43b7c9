"""Looks at every image of a data set before a run does.

    python -m tools.check_data my_images

Lists what would stop a run (exit status 2 if there is any) and what may spoil it: files that are
left out, the same image in two splits, classes of very different size.
"""

# ruff: noqa: E402
from engine.errors import BAD_INPUT, DONE, BadInput, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

import dataset
from engine import terminal
from engine.arguments import Parser
from engine.data import images
from engine.devices import cores

UNBALANCED = 10  # the ratio of the largest class to the smallest from which on it is noted


@dataclass
class Split:
    """What was found in train/, val/ or test/."""

    root: Path
    files: list[Path] = field(default_factory=list)  # all images
    counts: dict[str, int] = field(default_factory=dict)  # images of each class
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width and height, in pixels
    digests: dict[str, list[Path]] = field(default_factory=dict)  # equal files, by their content


class Problems(list[str]):
    """Lines about what is wrong, one for each problem."""

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Adds the message of a BadInput that is raised inside."""
        try:
            yield
        except BadInput as error:
            self.append(str(error))


def main() -> int:
    parser = Parser(description="Lists what is wrong with a data set, with file and remedy.")
    default = dataset.BUILT_IN
    parser.add_argument("data", nargs="?", default=default, help="folder with train/ and so on")
    folder = dataset.data_dir(parser.parse_args().data)
    faults, notes = Problems(), Problems()  # what would stop a run; what may spoil it
    with faults.collected():
        images.read_dataset_json(folder)
    present = [name for name in ("val", "test") if (folder / name).is_dir()]
    splits = [check_split(folder / name, faults, notes) for name in ("train", *present)]

    train = splits[0]
    if train.counts:
        for split in splits[1:]:
            with faults.collected():
                dataset.check_classes(split.root, list(split.counts), list(train.counts))
    if "val" not in present:  # a share of train/ is set aside
        with faults.collected():
            dataset.check_divisible(train.root, train.counts)
    if "test" not in present:
        notes.append(f"{folder / 'test'}: no such folder; test.py will need it")
    check_balance(train, notes)
    check_twins(splits, notes)
    for split in splits:
        print(describe(split))
    show("would stop a run", faults)
    show("worth a look", notes)
    print(f"{count(faults, 'fault')}, {count(notes, 'note')}" if faults + notes else "no problems")
    return BAD_INPUT if faults else DONE


def check_split(root: Path, faults: Problems, notes: Problems) -> Split:
    """Reads every file below `root`; lists all that is wrong, not only the first."""
    split = Split(root)
    classes: list[str] = []
    with faults.collected():
        classes = dataset.find_classes(root)
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if path.is_file() and not images.is_hidden(path):
            notes.append(f"{path}: not in a class folder, left out; move or delete it")
    for name in classes:
        found, others = images.list_images(root, root / name)
        notes += [
            f"{root / path}: not an image by its name, left out; convert or delete it"
            for path in others
        ]
        if not found:
            faults.append(f"{root / name}: no image in this class; add some or delete the folder")
        split.counts[name] = len(found)
        split.files += [root / path for path in found]
    if len(classes) == 1:
        notes.append(f"{root}: one class alone; there is nothing to tell apart")
    read_all(split, faults)
    return split


def read_all(split: Split, faults: Problems) -> None:
    """Decodes the files on all cores (Pillow leaves Python's lock meanwhile), with a bar."""
    name, total = split.root.name, len(split.files)
    with ThreadPoolExecutor(cores()) as threads:
        results = threads.map(read, split.files)
        for path, result in zip(
            split.files, terminal.bar(results, desc=name, total=total, unit="image"), strict=True
        ):
            if isinstance(result, str):
                faults.append(result)
                continue
            size, digest = result
            split.sizes.append(size)
            split.digests.setdefault(digest, []).append(path)


def read(path: Path) -> tuple[tuple[int, int], str] | str:
    """The size and a digest of an image, or what is wrong with it."""
    try:
        return images.read_image(path).size, hashlib.sha256(path.read_bytes()).hexdigest()
    except BadInput as error:
        return str(error)


def check_balance(train: Split, notes: Problems) -> None:
    most, least = max(train.counts.values(), default=0), min(train.counts.values(), default=0)
    if most > UNBALANCED * least > 0:
        notes.append(
            f"{train.root}: the largest class has {most} images and the smallest {least}; "
            "train.py --balance weights them alike"
        )


def check_twins(splits: list[Split], notes: Problems) -> None:
    """Notes equal files in different classes, or on both sides of a split."""
    is_divided = not any(split.root.name == "val" for split in splits)  # train/, for validation
    for split in splits:
        for first, *others in split.digests.values():
            for path in others:
                if path.relative_to(split.root).parts[0] != first.relative_to(split.root).parts[0]:
                    notes.append(f"{path}: the same file as {first}, in another class; keep one")
                elif split is splits[0] and is_divided:
                    notes.append(
                        f"{path}: the same file as {first}; one may be trained on and the other "
                        "validated on; keep one"
                    )
    # Images that were trained on make the metrics of every other split too good.
    for one, other in combinations(splits, 2):
        for digest in other.digests:
            if digest in one.digests:
                path, twin = other.digests[digest][0], one.digests[digest][0]
                notes.append(f"{path}: the same file as {twin}; delete one of them")


def describe(split: Split) -> str:
    total = sum(split.counts.values())
    lines = [f"{split.root}: {total} images in {len(split.counts)} classes"]
    width = max(map(len, split.counts), default=0)
    for name, count in split.counts.items():
        lines += [f"  {name:{width}}  {count:7}  {count / max(total, 1):6.1%}"]
    if split.sizes:
        for side, pixels in zip(("width", "height"), zip(*split.sizes, strict=True), strict=True):
            lines += [f"  {side}: {min(pixels)} to {max(pixels)} pixels, median {median(pixels):g}"]
    return "\n".join(lines)


def count(problems: Problems, name: str) -> str:
    return f"{len(problems)} {name}{'s' * (len(problems) != 1)}"


def show(title: str, problems: Problems) -> None:
    if problems:
        print(f"{title}:")
        print("\n".join(f"  {problem}" for problem in problems))


if __name__ == "__main__":
    run_program(main)
