"""Decoded images in a file beside the data, so that only the first run decodes them, and once.

A cache is one file: the pixels of all images (uint8, rows from top to bottom, channels last), then
height and width of each (int32). Its name says what it was made of, so one that is out of date is
not found and is made anew. It is mapped into memory, where all processes share it.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.devices import cores, memory
from engine.loading import Loader
from engine.names import Names
from engine.order import TestOrder

IN_MEMORY = 2**30  # bytes that may be kept in memory where there is no room on the disk


class Store:
    """Images of one or several sizes, stored end to end.

    Args:
        pixels: uint8, all images one after the other, each (H, W, C).
        sizes: Height and width of each image, of shape (N, 2).
        path: The file that `pixels` is a map of, if it is one.
    """

    def __init__(self, pixels: Tensor, sizes: Tensor, path: Path | None = None) -> None:
        self.path, self.pixels, self.sizes = path, pixels, sizes
        areas = sizes[:, 0].long() * sizes[:, 1]
        self.channels = len(pixels) // int(areas.sum())
        self.ends = areas.cumsum(0) * self.channels
        self.stacked: Tensor | None = None  # (N, H, W, C), if all are of one size
        if bool((sizes == sizes[0]).all()):
            height, width = sizes[0].tolist()
            self.stacked = pixels.view(len(sizes), height, width, self.channels)

    @classmethod
    def open(cls, path: Path, images: int) -> "Store":
        """Maps the file of a cache into memory."""
        content = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        end = len(content) - 8 * images
        return cls(content[:end], content[end:].clone().view(torch.int32).view(images, 2), path)

    def __getstate__(self) -> dict:
        """For worker processes that are not forked: they map the file themselves."""
        return vars(self) if self.path is None else {"path": self.path, "images": len(self.sizes)}

    def __setstate__(self, state: dict) -> None:
        opened = state if state["path"] is None else vars(Store.open(**state))
        self.__dict__.update(opened)

    def __getitem__(self, index: int) -> Tensor:
        """An image of its own, (C, H, W)."""
        height, width = self.sizes[index].tolist()
        end = int(self.ends[index])
        image = self.pixels[end - height * width * self.channels : end].clone()
        return image.view(height, width, self.channels).permute(2, 0, 1)


class CachedImages(Dataset):
    """A data set of image files that are decoded in the same way each time.

    A subclass sets `files`, has `decode`, and takes its images from `image`, or many at once from
    `images`.

    Args:
        root: The folder of the images; their cache is in `.cache` beside it.
        recipe: What of the options `decode` depends on, fit for a file name.
        code: The files of the code behind `decode`; a change in them makes the cache anew.
    """

    files: Names  # paths, relative to `root`

    def __init__(self, root: Path, recipe: str, code: list[str]) -> None:
        self.root, self.recipe, self.code = root, recipe, code
        self.store: Store | None = None

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, index: int) -> Tensor:
        """Reads an image: uint8 (C, H, W)."""
        raise NotImplementedError

    def image(self, index: int) -> Tensor:
        """An image, from the cache if there is one."""
        return self.decode(index) if self.store is None else self.store[index]

    def images(self, indices: list[int]) -> Tensor | None:
        """Images (N, C, H, W) from the cache; None if there is none or they differ in size."""
        if self.store is None or self.store.stacked is None:
            return None
        return self.store.stacked[torch.tensor(indices)].permute(0, 3, 1, 2)

    def fingerprint(self) -> str:
        """What tells this list of files from others; the order of training depends on it."""
        return hashlib.sha256(self.files.digest()).hexdigest()[:16]

    def cache_file(self) -> Path:
        """Where the cache of these files is, as they are now, read as they are now."""
        made_of = hashlib.sha256(self.files.digest())
        made_of.update(f"{PIL.__version__} {torchvision.__version__} {self.recipe}".encode())
        for path in self.code:
            made_of.update(Path(path).read_bytes())
        stats = [os.stat(f"{self.root}/{name}") for name in self.files]
        made_of.update(np.array([(s.st_size, s.st_mtime_ns) for s in stats]).tobytes())
        name = f"{self.root.name}-{self.recipe}-{made_of.hexdigest()[:16]}.u8"
        return self.root.parent / ".cache" / name


def use_cache(
    parts: list[CachedImages], wanted: bool | None, epochs: int, device: torch.device
) -> None:
    """Gives each part its cache, which is made if it has to be; says so in one line.

    On a GPU with plenty of free memory the images are kept there.

    Args:
        parts: The data sets.
        wanted: Whether there is to be one; None: if it fits into memory and is used twice.
        epochs: How often each sample will be used; an image may have several samples.
        device: Where the images are wanted.

    Raises:
        BadInput: One of the images is not readable.
    """
    for part in parts if wanted is not False else ():
        _use_cache(part, wanted, epochs, device)


def _use_cache(part: CachedImages, wanted: bool | None, epochs: int, device: torch.device) -> None:
    path = part.cache_file()
    what = f"cache: {len(part.files):,} images of {part.root}"
    if not path.exists():
        begun = time.perf_counter()
        expected = _expected_bytes(part)
        uses = epochs * max(1, len(part) // len(part.files))
        if wanted is None and (uses < 2 or expected > memory()):
            return
        part.store = _make(part, path, expected)
        if part.store is None:
            return
        made = f"decoded in {time.perf_counter() - begun:.1f} s, "
    else:
        part.store, made = Store.open(path, len(part.files)), ""
    size = f"{len(part.store.pixels) / 1e6:,.1f} MB"
    if device.type == "cuda" and len(part.store.pixels) < torch.cuda.mem_get_info(device)[0] / 8:
        part.store = Store(part.store.pixels.to(device), part.store.sizes)
        print(f"{what} {made}{size} kept on {device}")
    else:
        print(f"{what} {made}{size} in {part.store.path or 'memory'}")


def _make(part: CachedImages, path: Path, expected: int) -> Store | None:
    """Decodes all images, into a file if there is room for it, else into memory if they are few."""
    try:
        if disk_usage(part.root).free > 1.2 * expected + 2**28:
            _write(part, path)
            return Store.open(path, len(part.files))
        problem = f"its disk has no room for {expected / 1e9:,.1f} GB"
    except OSError as error:
        problem = f"{error.strerror}"
    if expected > IN_MEMORY:
        print(
            f"warning: no cache in {path.parent}: {problem}; images are decoded each time",
            file=sys.stderr,
        )
        return None
    pixels, sizes = zip(*_decode(part), strict=True)
    return Store(torch.cat(pixels), torch.cat(sizes))


def _write(part: CachedImages, path: Path) -> None:
    """Writes the cache of `part`, which is there in whole or not at all, and deletes older ones."""
    path.parent.mkdir(exist_ok=True)
    older = list(path.parent.glob(f"{part.root.name}-{part.recipe}-*.u8"))
    killed = path.parent.glob("*.tmp")  # what killed runs have left
    older += [file for file in killed if file.stat().st_mtime < time.time() - 3600]
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        sizes = []
        with open(partial, "wb") as file:
            for pixels, some in _decode(part):
                file.write(pixels.numpy())
                sizes.append(some)
            file.write(torch.cat(sizes).numpy())
        os.replace(partial, path)
        for stale in older:
            with suppress(OSError):  # Windows keeps what another run has mapped
                stale.unlink()
    finally:
        partial.unlink(missing_ok=True)
        with suppress(OSError):  # it is empty only if nothing has come of the first cache
            path.parent.rmdir()


def _decode(part: CachedImages) -> Iterator[tuple[Tensor, Tensor]]:
    """The pixels of some images at a time, end to end, and their sizes; uses all cores."""
    order = TestOrder(len(part.files), 64)
    workers = min(cores(), len(order) // 8)
    loader = Loader(_Decoding(part), order, torch.device("cpu"), workers, prefetch=0)
    bar = tqdm(desc=f"cache {part.root.name}", total=len(part.files), unit="image", disable=None)
    with loader.batches() as batches, bar:
        for pixels, sizes in batches:
            yield pixels, sizes
            bar.update(len(sizes))
    loader.close()


class _Decoding(Dataset):
    """The images of a data set, in the form in which they are stored."""

    def __init__(self, part: CachedImages) -> None:
        self.part = part

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images = [self.part.decode(index).permute(1, 2, 0) for index in indices]
        sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
        return torch.cat([image.reshape(-1) for image in images]), sizes


def _expected_bytes(part: CachedImages) -> int:
    """About how large the cache will be, judged by a few of the images."""
    few = range(0, len(part.files), max(1, len(part.files) // 8))
    return sum(part.decode(index).numel() for index in few) * len(part.files) // len(few)
