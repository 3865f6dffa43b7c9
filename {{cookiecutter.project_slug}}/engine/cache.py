"""Decoded images in a file beside the data, so that only the first run decodes them, and once.

A cache is one file: the pixels of all images (uint8, rows from top to bottom, channels last), then
height and width of each (int32). Its name says what it was made of, so one that is out of date is
not found and is made anew. It is mapped into memory, where all processes share it.
"""

import glob
import hashlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
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
from engine.order import TestOrder, whole_batch

PARTIAL = ".tmp"  # the end of the name of what is not yet whole
IN_MEMORY = 2**30  # bytes that may be kept in memory where there is no room on the disk


class Store:
    """Images of one or several sizes, stored end to end.

    Args:
        pixels: uint8, all images one after the other, each (H, W, C).
        sizes: Height and width of each image, of shape (N, 2).
        path: The file that `pixels` is a map of, if it is one.

    Raises:
        ValueError: The pixels are not those of images of these sizes.
    """

    def __init__(self, pixels: Tensor, sizes: Tensor, path: Path | None = None) -> None:
        self.path, self.pixels, self.sizes = path, pixels, sizes
        areas = sizes[:, 0].long() * sizes[:, 1]
        self.channels, rest = divmod(len(pixels), max(1, int(areas.sum())))
        if bool((sizes < 1).any()) or not self.channels or rest:
            raise ValueError("not the pixels of images of these sizes")
        self.ends = areas.cumsum(0) * self.channels
        self.stacked: Tensor | None = None  # (N, H, W, C), if all are of one size
        if bool((sizes == sizes[0]).all()):
            height, width = sizes[0].tolist()
            self.stacked = pixels.view(len(sizes), height, width, self.channels)

    @classmethod
    def open(cls, path: Path, images: int) -> "Store":
        """Maps the file of a cache into memory.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a whole cache of so many images.
        """
        # For reading alone: what may be written to would have to fit into the memory there is.
        content = np.memmap(path, np.uint8, "r")
        end = max(0, len(content) - 8 * images)
        sizes = np.array(content[end:]).view(np.int32).reshape(images, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch knows no tensors that are for reading alone
            return cls(torch.from_numpy(content[:end]), torch.from_numpy(sizes), path)

    def __getstate__(self) -> dict:
        """For worker processes that are not forked: they map the file themselves."""
        return vars(self) if self.path is None else {"path": self.path, "images": len(self.sizes)}

    def __setstate__(self, state: dict) -> None:
        opened = state if state["path"] is None else vars(Store.open(**state))
        self.__dict__.update(opened)

    def __getitem__(self, index: int) -> Tensor:
        """An image of its own, (C, H, W), that may be changed."""
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
        """An image, from the cache if there is one.

        It lies in memory with the channels last in either case, since transforms may round
        differently with another order.
        """
        if self.store is not None:
            return self.store[index]
        return self.decode(index).permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def images(self, indices: list[int]) -> Tensor | None:
        """Images (N, C, H, W) from the cache; None if there is none or they differ in size."""
        if self.store is None or self.store.stacked is None:
            return None
        stacked = self.store.stacked
        chosen = torch.tensor(indices, device=stacked.device)
        return stacked.index_select(0, chosen).permute(0, 3, 1, 2)

    def fingerprint(self) -> str:
        """What tells this list of files from others; the order of training depends on it."""
        return hashlib.sha256(self.files.digest()).hexdigest()[:16]

    def cache_file(self) -> Path:
        """Where the cache of these files is, as they are now, read as they are now."""
        made_of = hashlib.sha256(self.files.digest())
        made_of.update(f"{PIL.__version__} {torchvision.__version__} {self.recipe}".encode())
        for path in (__file__, *self.code):
            made_of.update(Path(path).read_bytes())
        made_of.update(np.array([_stamp(f"{self.root}/{name}") for name in self.files]).tobytes())
        name = f"{self.root.name}-{self.recipe}-{made_of.hexdigest()[:16]}.u8"
        return self.root.parent / ".cache" / name


def _stamp(path: str) -> tuple[int, int]:
    """What changes with the content of a file."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere; it is told by its name when it is read
        return -1, -1
    return status.st_size, status.st_mtime_ns


def use_cache(
    parts: Iterable[Dataset], wanted: bool | None, epochs: int, device: torch.device
) -> None:
    """Gives each part its cache, which is made if it has to be; says so in one line.

    On a GPU with plenty of free memory the images are kept there, if whole batches come from them.

    Args:
        parts: The data sets; those that are no CachedImages are left as they are.
        wanted: Whether there is to be one; None: if it fits into memory and is used twice.
        epochs: How often each sample will be used; an image may have several samples.
        device: Where the images are wanted.

    Raises:
        BadInput: One of the images is not readable.
    """
    for part in parts if wanted is not False else ():
        if isinstance(part, CachedImages):
            _use_cache(part, wanted, epochs, device)


def _use_cache(part: CachedImages, wanted: bool | None, epochs: int, device: torch.device) -> None:
    path, problem, decoded = part.cache_file(), "", ""
    _delete_leftovers(path.parent)
    part.store = _open(path, len(part.files))
    if part.store is None:
        begun, expected = time.perf_counter(), _expected_bytes(part)
        uses = epochs * max(1, len(part) // len(part.files))
        if wanted is None and (uses < 2 or expected > memory()):
            return
        part.store, problem = _make(part, path, expected)
        decoded = f"decoded in {time.perf_counter() - begun:.1f} s, "
    what = f"{len(part.files):,} images of {part.root}"
    if part.store is None:
        print(f"warning: no cache of {what}, to be decoded each time: {problem}", file=sys.stderr)
        return
    place = f"in {part.store.path}" if part.store.path else f"in memory ({problem})"
    pixels = part.store.pixels
    # Single images are for worker processes, and those cannot use the memory of the GPU.
    few = device.type == "cuda" and len(pixels) < torch.cuda.mem_get_info(device)[0] / 8
    if few and whole_batch(part, [0]) is not None:
        part.store, place = Store(pixels.to(device), part.store.sizes), f"on {device}"
    print(f"cache: {what}, {decoded}{len(pixels) / 1e6:,.1f} MB {place}")


def _open(path: Path, images: int) -> Store | None:
    """The cache in a file; None if there is no such file, or it is not whole."""
    with suppress(OSError, ValueError):
        return Store.open(path, images)
    return None


def _make(part: CachedImages, path: Path, expected: int) -> tuple[Store | None, str]:
    """Decodes all images, into a file if there is room for it, else into memory if they are few.

    Returns:
        The store if there is one, and what stood in the way of a file.
    """
    try:
        if disk_usage(path.parents[1]).free > 1.2 * expected + 2**28:
            _write(part, path)
            return Store.open(path, len(part.files)), ""
        problem = f"the disk has no room for {expected / 1e9:,.1f} GB"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    problem = f"{path.parent}: {problem}"
    if expected > IN_MEMORY:
        return None, problem
    pixels, sizes = zip(*_decode(part), strict=True)
    return Store(torch.cat(pixels), torch.cat(sizes)), problem


def _write(part: CachedImages, path: Path) -> None:
    """Writes the cache of `part`, which is there in whole or not at all, and deletes older ones."""
    path.parent.mkdir(exist_ok=True)
    older = list(path.parent.glob(glob.escape(f"{part.root.name}-{part.recipe}-") + "*.u8"))
    # A random name, since containers on several machines have equal process numbers.
    partial = path.with_name(f"{path.name}.{os.urandom(4).hex()}{PARTIAL}")
    try:
        sizes = []
        with open(partial, "wb") as file:
            for pixels, some in _decode(part):
                file.write(pixels.numpy().data)
                sizes.append(some)
            file.write(torch.cat(sizes).numpy().data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the name without the content
        os.replace(partial, path)
        for stale in older:
            if stale != path:
                with suppress(OSError):  # Windows keeps what another run has mapped
                    stale.unlink()
    finally:
        partial.unlink(missing_ok=True)
        with suppress(OSError):  # it is empty only if nothing has come of the first cache
            path.parent.rmdir()


def _delete_leftovers(folder: Path) -> None:
    """Deletes what killed runs have begun to write; other runs may be writing what is younger."""
    for partial in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):
            if partial.stat().st_mtime < time.time() - 3600:
                partial.unlink()


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
