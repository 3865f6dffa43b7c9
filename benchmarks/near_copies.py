"""What tools.check_data finds of planted near copies, and how long it takes for many images.

    python -m benchmarks.near_copies DIR ...                  1,000 copies of the photographs in DIR
    python -m benchmarks.near_copies DIR ... --side 192       the same of tiles cut from them
    python -m benchmarks.near_copies DIR ... --many 70000     so many images and no copies: seconds

The photographs are reduced to --largest pixels. About a tenth of the copies each: JPEG of quality
50; 90 % of the size; 5 % of the area cropped, at a corner, at one side, and anywhere; brighter and
darker by 10; mirrored; mirrored and cropped; all at once. They are in test/, and what they are
copies of is in train/, as JPEGs of quality 90. A reported pair is false if the two were not made
of one photograph or tile; false pairs are printed, since DIR may hold copies itself.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from PIL.Image import Resampling, Transpose

from benchmarks.machine import describe
from benchmarks.runner import render

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
KINDS = (
    *("quality 50", "90 % of the size", "cropped at a corner", "cropped at a side", "cropped"),
    *("brighter", "darker", "mirrored", "mirrored, cropped", "all"),
)
LINE = re.compile(r"(\S+\.jpg): a (?:mirrored )?near copy of (\S+\.jpg) ")


def main() -> None:
    parser = argparse.ArgumentParser(
        "near_copies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="DIR", help="folders of photographs")
    add("--planted", type=int, default=1000, help="copies")
    add("--largest", type=int, default=768, help="pixels of the longer side of a photograph")
    add("--side", type=int, metavar="PIXELS", help="cut the photographs into tiles of this size")
    add("--many", type=int, metavar="N", help="measure the time for N random parts instead")
    opt = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in describe().items()), flush=True)
    paths = [path for folder in opt.photos for path in sorted(folder.rglob("*"))]
    paths = [path for path in paths if path.suffix.lower() in ENDINGS and not path.is_symlink()]
    with tempfile.TemporaryDirectory() as scratch:
        project, data = render(Path(scratch)), Path(scratch, "data")
        if opt.many:
            measure(project, data, paths, opt.many, opt.largest)
        else:
            plant(project, data, paths, opt)


def plant(project: Path, data: Path, paths: list[Path], opt: argparse.Namespace) -> None:
    """Prints how many copies are found, of each kind, and how many of the pairs are false."""
    for split in ("train", "test"):
        (data / split / "x").mkdir(parents=True)
        (data / split / "y").mkdir()
    with ProcessPoolExecutor() as pool:
        cut = partial(write_tiles, folder=data / "train/x", side=opt.side, largest=opt.largest)
        counts = list(pool.map(cut, range(len(paths)), paths))
    names = [f"{i}-{j}" for i, count in enumerate(counts) for j in range(count)]
    draw = random.Random(0)
    every = [(name, kind) for name in names for kind in KINDS]
    chosen = draw.sample(every, min(opt.planted, len(every)))
    for name, kind in chosen:
        with Image.open(data / "train/x" / f"{name}.jpg") as image:
            quality = 50 if kind in ("quality 50", "all") else 90
            target = data / "test/x" / f"{name}-{KINDS.index(kind)}.jpg"
            change(image, kind, draw).save(target, quality=quality)
    for split in ("train", "test"):  # a second class
        for path in sorted((data / split / "x").iterdir())[:2]:
            path.rename(data / split / "y" / path.name)
    out, seconds = check(project, data)
    pairs = {tuple(Path(name).stem for name in match) for match in LINE.findall(out)}
    found = {(copy, name) for copy, name in pairs if copy.startswith(f"{name}-")}
    of_kind = Counter(kind for _, kind in chosen)
    right = Counter(KINDS[int(copy.rpartition("-")[2])] for copy, _ in found)
    for kind in KINDS:
        print(f"{kind}: {right[kind]} of {of_kind[kind]}")
    false = sorted(pair for pair in pairs if len({tuple(s.split("-")[:2]) for s in pair}) > 1)
    for one, other in false:
        print("false:", *(f"{name} of {paths[int(name.split('-')[0])]}" for name in (one, other)))
    print(
        f"{len(names):,} images, {len(chosen):,} copies: {len(found) / len(chosen):.1%} found, "
        f"{len(false)} of {len(pairs):,} pairs false ({len(false) / max(1, len(pairs)):.2%}), "
        f"{seconds:.0f} s"
    )


def measure(project: Path, data: Path, paths: list[Path], count: int, largest: int) -> None:
    """Prints the seconds of check_data for many images of 96 pixels, and of the search alone."""
    (data / "train/y").mkdir(parents=True)
    (data / "train/x").mkdir()
    with ProcessPoolExecutor() as pool:
        cut = partial(write_parts, folder=data / "train", largest=largest, total=count)
        list(pool.map(cut, range(len(paths)), [len(paths)] * len(paths), paths))
    before = os.times()
    out, seconds = check(project, data)
    lines, after = len(LINE.findall(out)), os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    search = [sys.executable, "-c", SEARCH, str(data / "train")]
    told = subprocess.run(search, cwd=project, check=True, capture_output=True, text=True).stdout
    print(
        f"{count:,} images: check_data {seconds:.0f} s ({used:.0f} s of processors), {lines:,} "
        f"lines of near copies; {told.strip()}"
    )


SEARCH = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from PIL import Image
from tools.near_copies import find_near_copies, small_picture
paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
with ThreadPoolExecutor() as threads:
    pictures = np.stack([*threads.map(lambda path: small_picture(Image.open(path)), paths)])
begun, used = time.perf_counter(), time.process_time()
find_near_copies(pictures)
seconds = time.perf_counter() - begun
print(f"the search alone {seconds:.0f} s ({time.process_time() - used:.0f} s of processors)")
"""


def check(project: Path, data: Path) -> tuple[str, float]:
    begun = time.perf_counter()
    command = [sys.executable, "-m", "tools.check_data", str(data)]
    run = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, time.perf_counter() - begun


def read(path: Path, largest: int) -> Image.Image:
    """A photograph with at most so many pixels on a side."""
    with Image.open(path) as file:
        file.draft("RGB", (largest, largest))
        image = file.convert("RGB")
    image.thumbnail((largest, largest), Resampling.LANCZOS)
    return image


def write_tiles(i: int, path: Path, folder: Path, side: int | None, largest: int) -> int:
    """Writes photograph number i, whole or in tiles of about `side` pixels; returns how many."""
    tiles = list(tile(read(path, largest), side))
    for j, part in enumerate(tiles):
        part.save(folder / f"{i}-{j}.jpg", quality=90)
    return len(tiles)


def tile(image: Image.Image, side: int | None) -> Iterator[Image.Image]:
    width, height = image.size
    columns, rows = (max(1, size // side) if side else 1 for size in image.size)
    for row in range(rows):
        for column in range(columns):
            left, top = column * width // columns, row * height // rows
            right, bottom = (column + 1) * width // columns, (row + 1) * height // rows
            yield image.crop((left, top, right, bottom))


def write_parts(i: int, photos: int, path: Path, folder: Path, largest: int, total: int) -> None:
    """Writes every `photos`-th of `total` images: a random part of the photograph."""
    image = read(path, largest)
    for number in range(i, total, photos):
        draw = random.Random(number)
        share = draw.uniform(0.3, 0.8)
        width, height = (round(size * share) for size in image.size)
        left = draw.randint(0, image.width - width)
        top = draw.randint(0, image.height - height)
        part = image.crop((left, top, left + width, top + height)).resize((96, 96))
        part.save(folder / "xy"[number % 2] / f"{number}.jpg", quality=90)


def change(image: Image.Image, kind: str, draw: random.Random) -> Image.Image:
    """One of KINDS; the quality of a JPEG is chosen when it is saved."""
    width, height = image.size
    if "mirrored" in kind or kind == "all":
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    if "cropped" in kind or kind == "all":
        one_side = kind == "cropped at a side"
        shares = draw.choice([(0.95, 1), (1, 0.95)]) if one_side else (0.95**0.5, 0.95**0.5)
        wide, high = round(width * shares[0]), round(height * shares[1])
        at_end = kind in ("cropped at a corner", "cropped at a side")
        rest = width - wide, height - high
        left, top = (draw.choice((0, n)) if at_end else draw.randint(0, n) for n in rest)
        image = image.crop((left, top, left + wide, top + high))
    if kind in ("90 % of the size", "all"):
        image = image.resize([round(0.9 * side) for side in image.size], Resampling.BICUBIC)
    if kind in ("brighter", "darker", "all"):
        step = {"brighter": 10, "darker": -10}.get(kind) or draw.choice((-10, 10))
        image = image.point(lambda value: max(0, min(255, value + step)))
    return image


if __name__ == "__main__":
    main()
