"""The images that are trained on: cut from real photographs, kept in a folder that git ignores."""

import math
import os
import random
import shutil
import subprocess
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

# Debian's packages with photographs, and where in them those are that are no drawings.
PACKAGES = {
    "lomiri-wallpapers-16.04": "usr/share/backgrounds/**/*.jpg",
    "lomiri-wallpapers-20.04": "usr/share/backgrounds/**/*.jpg",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature/*.jpg",
    "opencv-doc": "usr/share/doc/opencv-doc/examples/**/*.jpg",
}
CLASSES = 10
JPEG_SIZE = (500, 375)
TINY_FILES = 1000  # hard links to so many; file systems limit the links to one file


class NoPhotographs(Exception):
    """There is nothing to cut images from. The text is one line."""


@dataclass(frozen=True)
class Images:
    """A data set to be made.

    Attributes:
        kind: `png`, 32x32 pixels; `jpeg`, 500x375 pixels of quality 90; `tiny`, 8x8 pixels of noise
            as PNG, by hard links, for the cost of a long list.
        train: Images in train/.
        test: Images in test/.
    """

    kind: str
    train: int
    test: int = 20

    def folder(self, data: Path) -> Path:
        """The folder that holds train/ and test/."""
        return data / f"{self.kind}-{self.train}" / "images"


def make(images: Images, data: Path, photos: Path | None, smoke: bool) -> Path:
    """Makes a data set, unless it is there; returns its folder.

    Args:
        images: Which one.
        data: Where data sets are kept.
        photos: A folder of photographs; without one, Debian's packages.
        smoke: Take noise for photographs, which needs no network.

    Raises:
        NoPhotographs: There are none.
    """
    folder = images.folder(data)
    if folder.exists():
        return folder
    print(f"making {folder}", flush=True)
    work = folder.with_name("partial")
    shutil.rmtree(work, ignore_errors=True)
    for part in ("train", "test"):
        for label in range(CLASSES):
            (work / part / str(label)).mkdir(parents=True)
    if images.kind == "tiny":
        _link_tiny(images, work)
    else:
        _cut_all(images, find_photos(data, photos, smoke), work)
    work.rename(folder)
    return folder


def forget_caches(folder: Path) -> None:
    """Deletes what training has left beside a data set that was made here."""
    for path in (*folder.iterdir(), *folder.parent.iterdir()):
        if path != folder and path.name not in ("train", "test", "files"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def find_photos(data: Path, photos: Path | None, smoke: bool) -> list[Path]:
    """The photographs that are large enough to be cut, sorted.

    Raises:
        NoPhotographs: There are none.
    """
    if smoke and photos is None:
        return [_draw_noise(data / "noise" / f"{i}.png", i) for i in range(2)]
    source = photos or _download(data / "photographs")
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and _large_enough(path)
    ]
    if not found:
        raise NoPhotographs(f"{source}: no photograph of at least 500x375 pixels in it")
    return found


def _large_enough(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return all(have >= need for have, need in zip(image.size, JPEG_SIZE, strict=True))
    except OSError:  # no image, whatever its name
        return False


def _download(target: Path) -> Path:
    """Unpacks the photographs of Debian's packages, which are not installed for it.

    Raises:
        NoPhotographs: Not one of them can be had.
    """
    if target.exists():
        return target
    work = target.with_name("photographs-partial")
    shutil.rmtree(work, ignore_errors=True)
    (work / "photographs").mkdir(parents=True)
    for package, pattern in PACKAGES.items():
        print(f"fetching Debian's package {package}", flush=True)
        unpacked = work / package
        unpacked.mkdir()
        try:
            _quietly(unpacked, "apt-get", "download", package)
            (deb,) = unpacked.glob("*.deb")
            _quietly(unpacked, "dpkg-deb", "-x", deb.name, ".")
        except (OSError, subprocess.CalledProcessError):
            print(f"{package} cannot be had; the photographs are those of the others")
            continue
        for path in unpacked.glob(pattern):
            shutil.copyfile(path, work / "photographs" / f"{package}_{path.name}")
    if not any((work / "photographs").iterdir()):
        raise NoPhotographs(
            f"no photographs: apt-get could not download {', '.join(PACKAGES)}; name a folder of "
            "your own with --photos DIR"
        )
    (work / "photographs").rename(target)
    shutil.rmtree(work)
    return target


def _quietly(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


def _cut_all(images: Images, photos: list[Path], folder: Path) -> None:
    """Cuts all images, on all cores: each photograph is read once."""
    job = partial(_cut, images, folder, len(photos))
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(job, photos, range(len(photos))):
            pass


def _cut(images: Images, folder: Path, photos: int, path: Path, first: int) -> None:
    """Cuts every `photos`-th image, from number `first` on, out of one photograph.

    Each shows a random part, between half of the photograph's sides and as much as fits.
    """
    size, longest = ((32, 32), 640) if images.kind == "png" else (JPEG_SIZE, 2000)
    with Image.open(path) as file:
        file.draft(
            "RGB", (longest, longest)
        )  # JPEGs are decoded smaller, in a fraction of the time
        photo = file.convert("RGB")
    photo.thumbnail((longest, longest))  # what follows would read all its pixels each time
    scale = max(1.0, min(photo.width / size[0], photo.height / size[1]))
    for i in range(first, images.train + images.test, photos):
        rng = random.Random(i)
        shrink = math.exp(rng.uniform(math.log(max(1.0, scale / 2)), math.log(scale)))
        width, height = min(size[0] * shrink, photo.width), min(size[1] * shrink, photo.height)
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
        image = photo.resize(
            size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
        )
        part = "train" if i < images.train else "test"
        target = folder / part / str(i % CLASSES) / f"{i:06d}.{images.kind}"
        image.save(target, quality=90)  # which PNG does not know


def _link_tiny(images: Images, folder: Path) -> None:
    (folder / "files").mkdir()
    files = [folder / "files" / f"{i}.png" for i in range(min(TINY_FILES, images.train))]
    for i, file in enumerate(files):
        Image.frombytes("RGB", (8, 8), random.Random(i).randbytes(192)).save(file)
    for i in range(images.train + images.test):
        part = "train" if i < images.train else "test"
        os.link(files[i % len(files)], folder / part / str(i % CLASSES) / f"{i:07d}.png")


def _draw_noise(path: Path, seed: int) -> Path:
    """Draws a picture of 800x600 pixels that compresses about as a photograph does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(zlib.crc32(path.name.encode()) + seed).randbytes(3 * 100 * 75)
    image = Image.frombytes("RGB", (100, 75), noise)
    image.resize((800, 600), Image.Resampling.BICUBIC).save(path)
    return path
