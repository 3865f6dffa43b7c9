"""A file of decoded images beside the data: only the first run decodes them.

The file holds the pixels of all images (uint8, rows from top to bottom, channels last), then a
digest of the pixels of each (int64), then its height and width (int32). The file's name is a digest
of all that it was made of, so an outdated one is not found, and a new one is made. It is mapped
into memory, which all processes share.
"""

import glob
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset

from engine import terminal
from engine.data.images import SerializedList
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler, whole_batch
from engine.data.source import digest_of
from engine.devices import cores, memory
from engine.distributed import ALONE, World

FORMAT = 1  # of the file; with another number all caches are made again
PARTIAL = ".tmp"  # the end of the name of an unfinished file
IN_MEMORY = 2**30  # bytes that may be kept in memory where there is no room on the disk


class MappedImages:
    """Images of one or several sizes, stored end to end.

    Args:
        pixels: uint8, all images one after the other, each (H, W, C).
        sizes: Height and width of each image, of shape (N, 2).
        digests: A digest of the pixels of each image, int64 of shape (N,), if they are known.
        path: The file that `pixels` is a map of, if it is one.

    Raises:
        ValueError: The pixels are not those of images of these sizes.
    """

    def __init__(
        self,
        pixels: Tensor,
        sizes: Tensor,
        digests: Tensor | None = None,
        path: Path | None = None,
    ) -> None:
        self.path, self.pixels, self.sizes, self.digests = path, pixels, sizes, digests
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
    def open(cls, path: Path, images: int) -> "MappedImages":
        """Maps the file of a cache into memory.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a whole cache of so many images.
        """
        # Read-only: the pages of a writable map would have to fit into memory.
        content = np.memmap(path, np.uint8, "r")
        end = max(0, len(content) - 16 * images)
        parts = np.array(content[end:]).reshape(2, 8 * images)
        digests, sizes = parts[0].view(np.int64), parts[1].view(np.int32).reshape(images, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch has no read-only tensors
            pixels = torch.from_numpy(content[:end])
        return cls(pixels, torch.from_numpy(sizes), torch.from_numpy(digests), path)

    def __getstate__(self) -> dict:
        """For worker processes that are not forked: they map the file themselves."""
        return vars(self) if self.path is None else {"path": self.path, "images": len(self.sizes)}

    def __setstate__(self, state: dict) -> None:
        opened = state if state["path"] is None else vars(MappedImages.open(**state))
        self.__dict__.update(opened)

    def __getitem__(self, index: int) -> Tensor:
        """An image of its own, (C, H, W), that may be changed."""
        height, width = self.sizes[index].tolist()
        end = int(self.ends[index])
        image = self.pixels[end - height * width * self.channels : end].clone()
        return image.view(height, width, self.channels).permute(2, 0, 1)


class CachedImages:
    """The images of a list of files, each decoded in the same way every time.

    Args:
        root: The folder of the images; their cache is in `.cache` beside it.
        files: Their paths, relative to `root`.
        decode: From a path to an image, uint8 (C, H, W); worker processes must be able to import
            it.
        recipe: The options that `decode` depends on, as a part of a file name. The code of
            `decode` counts too: when it does something else, the cache is made again.
    """

    def __init__(
        self,
        root: Path,
        files: SerializedList,
        decode: Callable[[str], Tensor],
        recipe: str,
    ) -> None:
        self.root, self.files, self.recipe = root, files, recipe
        self._decode = decode
        self.mapped: MappedImages | None = None
        self._stamps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, index: int) -> Tensor:
        """Reads an image from its file: uint8 (C, H, W)."""
        return self._decode(f"{self.root}/{self.files[index]}")

    def __getitem__(self, index: int) -> Tensor:
        """An image, uint8 (C, H, W), from the cache if there is one.

        It lies in memory with the channels last in either case, since transforms may round
        differently with another order.
        """
        if self.mapped is not None:
            return self.mapped[index]
        return self.decode(index).permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def stack(self, indices: Tensor) -> Tensor | None:
        """Images (N, C, H, W) from the cache; None if there is none or they differ in size."""
        if self.mapped is None or self.mapped.stacked is None:
            return None
        return self.mapped.stacked.index_select(0, indices).permute(0, 3, 1, 2)

    def fingerprint(self, rows: Tensor) -> str:
        """A checksum of these files and of a choice of them, one row for each sample."""
        digest = hashlib.sha256(self.files.digest() + rows.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def cache_file(self) -> Path:
        """The path of the cache of these files in their present state."""
        made_of = hashlib.sha256(self.files.digest())
        by = (FORMAT, PIL.__version__, torchvision.__version__, digest_of(self._decode))
        made_of.update(f"{by} {self.recipe}".encode())
        self._stamps = np.array([_stamp(f"{self.root}/{name}") for name in self.files])
        made_of.update(self._stamps.tobytes())
        name = f"{self.root.name}-{self.recipe}-{made_of.hexdigest()[:16]}.u8"
        return self.root.parent / ".cache" / name

    def records(self) -> Iterator[str]:
        """What tells whether a file has changed: a line of JSON for each.

        It holds the file, its size in bytes, its time of change in ns, and a digest of the decoded
        pixels, or null. No file is read for it: the cache has the digests from when it was made,
        and the rest was asked for its name. 20,000 files take 0.1 s.
        """
        stamps = self._stamps
        if stamps is None:
            stamps = np.array([_stamp(f"{self.root}/{name}") for name in self.files])
        digests = self.mapped.digests if self.mapped is not None else None
        known = ["null"] * len(self) if digests is None else digests.tolist()
        for name, (size, changed), digest in zip(self.files, stamps.tolist(), known, strict=True):
            yield f"[{json.dumps(f'{self.root.name}/{name}')}, {size}, {changed}, {digest}]\n"


def _stamp(path: str) -> tuple[int, int]:
    """What changes with the content of a file."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere; reading it raises an error that names it
        return -1, -1
    return status.st_size, status.st_mtime_ns


def use_cache(
    data_sets: list[Any],
    wanted: bool | None,
    epochs: int,
    device: torch.device,
    world: World = ALONE,
) -> None:
    """Gives the images of data sets their cache, which is made if necessary; reports in one line.

    One process of each machine makes it; the others wait for it, and map the same file. On a GPU
    with plenty of free memory the images are kept there, if all batches are made at once.

    Args:
        data_sets: Those without CachedImages as `images` are left as they are. Two that share
            their images, such as the parts of a split, share the cache.
        wanted: Whether to make one; None: if it fits into memory and is used twice.
        epochs: How often each sample is used; an image may have several samples.
        device: The device of the model.
        world: The processes of the run.

    Raises:
        BadInput: One of the images is not readable.
    """
    groups: dict[int, list[Any]] = {}
    for data_set in data_sets if wanted is not False else ():
        if isinstance(getattr(data_set, "images", None), CachedImages):
            groups.setdefault(id(data_set.images), []).append(data_set)
    with world.first_here():
        for sharing in groups.values():
            images = sharing[0].images
            uses = epochs * max(1, sum(map(len, sharing)) // len(images))
            _use_cache(images, wanted, uses)
            if device.type == "cuda" and images.mapped is not None:
                _move_if_few(sharing, images, device)


def _use_cache(images: CachedImages, wanted: bool | None, uses: int) -> None:
    path, problem, decoded = images.cache_file(), "", ""
    _delete_leftovers(path.parent)
    images.mapped = _open(path, len(images))
    if images.mapped is None:
        begun, expected = time.perf_counter(), _expected_bytes(images)
        if wanted is None and (uses < 2 or expected > memory()):
            return
        images.mapped, problem = _make(images, path, expected)
        decoded = f"decoded in {time.perf_counter() - begun:.1f} s, "
    what = f"{len(images):,} images of {images.root}"
    if images.mapped is None:
        print(f"warning: no cache for {what}, decoded each time: {problem}", file=sys.stderr)
        return
    kept_in = images.mapped.path
    place = f"in {kept_in.parent.name}" if kept_in else f"in memory ({problem})"
    terminal.say(f"cache: {what}, {decoded}{len(images.mapped.pixels) / 1e6:,.1f} MB {place}")


def _move_if_few(sharing: list[Any], images: CachedImages, device: torch.device) -> None:
    """Keeps the images on the GPU if they take an eighth of its free memory at most."""
    mapped = images.mapped
    assert mapped is not None
    first = torch.tensor([0])
    # Single samples may be loaded by worker processes, which cannot use the memory of the GPU.
    at_once = all(whole_batch(data_set, first) is not None for data_set in sharing)
    if at_once and len(mapped.pixels) < torch.cuda.mem_get_info(device)[0] / 8:
        images.mapped = MappedImages(mapped.pixels.to(device), mapped.sizes, mapped.digests)
        for data_set in sharing:
            data_set.to(device)
        terminal.say(f"cache: {len(images):,} images of {images.root} are kept on {device}")


def _open(path: Path, images: int) -> MappedImages | None:
    """The cache in a file; None if there is no such file, or it is not whole."""
    with suppress(OSError, ValueError):
        return MappedImages.open(path, images)
    return None


def _make(images: CachedImages, path: Path, expected: int) -> tuple[MappedImages | None, str]:
    """Decodes all images, into a file if there is room for it, else into memory if they are few.

    Returns:
        The images if they could be kept, and why there is no file.
    """
    try:
        if disk_usage(path.parents[1]).free > 1.2 * expected + 2**28:
            _write(images, path)
            return MappedImages.open(path, len(images)), ""
        problem = f"the disk has no room for {expected / 1e9:,.1f} GB"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    problem = f"{path.parent}: {problem}"
    if expected > IN_MEMORY:
        return None, problem
    pixels, sizes, digests = map(torch.cat, zip(*_decode(images), strict=True))
    return MappedImages(pixels, sizes, digests), problem


def _write(images: CachedImages, path: Path) -> None:
    """Writes the cache file, whole or not at all, and deletes the outdated ones."""
    path.parent.mkdir(exist_ok=True)
    older = list(path.parent.glob(glob.escape(f"{images.root.name}-{images.recipe}-") + "*.u8"))
    # A random name, since containers on several machines have equal process numbers.
    partial = path.with_name(f"{path.name}.{os.urandom(4).hex()}{PARTIAL}")
    try:
        sizes, digests = [], []
        with open(partial, "wb") as file:
            for pixels, some_sizes, some_digests in _decode(images):
                file.write(pixels.numpy().data)
                sizes.append(some_sizes)
                digests.append(some_digests)
            file.write(torch.cat(digests).numpy().data)
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
        with suppress(OSError):  # it is empty only if the first cache failed
            path.parent.rmdir()


def _delete_leftovers(folder: Path) -> None:
    """Deletes the unfinished files of killed runs; recent ones may be those of other runs."""
    for partial in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):
            if partial.stat().st_mtime < time.time() - 3600:
                partial.unlink()


def _decode(images: CachedImages) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pixels of some images at a time, end to end, their sizes and digests."""
    sampler = EvalBatchSampler(len(images), 64)
    # On all cores if that takes longer than to start a process, which imports PyTorch unless it is
    # forked: a worker for each 2^16 images or 128 MiB of files.
    assert images._stamps is not None
    size = int(images._stamps[:, 0].clip(0).sum())
    workers = min(cores(), int(len(images) / 2**16 + size / 2**27))
    loader = Loader(_Decoding(images), sampler, torch.device("cpu"), workers, prefetch=0)
    bar = terminal.bar(desc=f"cache {images.root.name}", total=len(images), leave=False)
    with loader, loader.batches() as batches, bar:
        for pixels, sizes, digests in batches:
            yield pixels, sizes, digests
            bar.update(len(sizes))


class _Decoding(Dataset):
    """The images of a data set, in the form in which they are stored."""

    def __init__(self, images: CachedImages) -> None:
        self.images = images

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = [self.images.decode(index).permute(1, 2, 0) for index in indices.tolist()]
        sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int32)
        pixels = [image.reshape(-1) for image in images]
        return torch.cat(pixels), sizes, torch.tensor([_digest(image) for image in pixels])


def _digest(pixels: Tensor) -> int:
    """A number of 64 bits that differs for other pixels."""
    digest = hashlib.blake2b(pixels.numpy().data, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _expected_bytes(images: CachedImages) -> int:
    """About how large the cache will be, judged by a few of the images."""
    few = range(0, len(images), max(1, len(images) // 8))
    return sum(images.decode(index).numel() for index in few) * len(images) // len(few)
