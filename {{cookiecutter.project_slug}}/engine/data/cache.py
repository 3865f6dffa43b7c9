"""A file of decoded images beside the data: only the first run decodes them.

A cache is found by its name, which has a digest of the list of files and of the code that decodes
them, and is used if the files have the content that it was made of. It is mapped into memory, which
all processes share. One that no run has used for a week is deleted by the next run beside it.
"""

import errno
import glob
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset

from engine import terminal
from engine.data import mapped
from engine.data.files import SerializedList
from engine.data.loader import Loader
from engine.data.mapped import MappedImages, digest_file, stamp
from engine.data.sampler import EvalBatchSampler, Samples, whole_batch
from engine.data.source import digest_of
from engine.devices import cores, memory
from engine.distributed import ALONE, World
from engine.errors import BadInput

ENDING, FEATURES = ".decoded", ".features"  # of the names of caches
PARTIAL = ".tmp"  # and of unfinished ones, after that
# Seconds after which a file may be deleted, if it is not in use.
UNUSED, UNFINISHED = 7 * 24 * 3600, 3600
CHECKED = 8  # images at most that are decoded to see whether a cache is theirs
WHERE = ("auto", "on", "off")  # of `--cache`, besides a folder
NO_FOLDERS = {*WHERE, "true", "false", "yes", "no", "none", "0", "1"}  # in small letters


class CachedImages:
    """The images of a list of files, each decoded in the same way every time.

    Args:
        root: The folder of the images; their cache is in `.cache` beside it, or where `use_cache`
            puts it.
        files: Their paths, relative to `root`.
        decode: From a path to an image (C, H, W), of the same type and number of channels for each;
            worker processes must be able to import it.
        recipe: The options that `decode` depends on, as a part of a file name. The code of
            `decode` counts too: when it does something else, the cache is made again.
        kind: What the values are: "image" (brightness), "index" (of a class, as in a mask) or
            "feature" (anything else).
        data: The folder of all images of the data set, in which `.cache` is; by default that above
            `root`.
        notes: What is known of each file besides its bytes, such as a digest of its row in a table;
            files.jsonl has it.
    """

    def __init__(
        self,
        root: Path,
        files: Iterable[str],
        decode: Callable[[str], Tensor],
        recipe: str,
        kind: str = "image",
        data: Path | None = None,
        notes: Iterable[str] | None = None,
    ) -> None:
        assert kind in mapped.KINDS, kind
        self.files = files if isinstance(files, SerializedList) else SerializedList(files)
        self.root, self.recipe, self.kind = root, recipe, kind
        self.data = root.parent if data is None else data
        self.notes = None if notes is None else SerializedList(notes)
        self._decode = decode
        self.mapped: MappedImages | None = None
        self._stamps: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files)

    def names(self) -> Iterator[str]:
        """The paths of the files below the folder of the data."""
        inside = "" if self.root == self.data else f"{self.root.name}/"
        return (inside + file for file in self.files)

    def path(self, index: int) -> str:
        """The file of an image."""
        return f"{self.root}/{self.files[index]}"

    def decode(self, index: int) -> Tensor:
        """Reads an image from its file: (C, H, W)."""
        return self._decode(self.path(index))

    def __getitem__(self, index: int) -> Tensor:
        """An image, (C, H, W), from the cache if there is one.

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
        values = self.mapped.stacked
        if values.dtype != torch.uint16:
            return values.index_select(0, indices).permute(0, 3, 1, 2)
        # Not every PyTorch selects among uint16.
        chosen = values.view(torch.int16).index_select(0, indices)
        return chosen.view(torch.uint16).permute(0, 3, 1, 2)

    def totals(self, rows: Tensor) -> tuple[Tensor, int]:
        """Sums over some images for statistics, the same with and without a cache.

        Args:
            rows: int64 (N,), each image once.

        Returns:
            As mapped.sums_of: of indices how often each of 0..255 occurs, else the sum of the
            values and that of their squares for each channel; and the number of pixels.
        """
        sums, pixels = self.sums(rows)
        return sums.sum(0), pixels

    def sums(self, rows: Tensor) -> tuple[Tensor, int]:
        """As `totals`, but what is added up of each image by itself: (N, ...)."""
        if self.mapped is not None:
            chosen = self.mapped.records[rows.cpu().numpy()]
            areas = chosen["size"].prod(1, dtype=np.int64)
            return torch.from_numpy(chosen["sums"].copy()), int(areas.sum())
        sums, pixels = [], 0
        for row in rows.tolist():
            image = self[row].permute(1, 2, 0)
            sums.append(mapped.sums_of(image, self.kind))
            pixels += image.shape[0] * image.shape[1]
        return torch.stack(sums), pixels

    def fingerprint(self, rows: Tensor) -> str:
        """A checksum of these files and of a choice of them, one row for each sample."""
        digest = hashlib.sha256(self.files.digest() + rows.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def name(self) -> str:
        """How the names of caches of these files begin, which this code could read."""
        made_of = hashlib.sha256(self.files.digest())
        by = (mapped.FORMAT, PIL.__version__, torchvision.__version__, digest_of(self._decode))
        made_of.update(f"{by} {self.recipe} {self.kind}".encode())
        return f"{self.root.name}-{self.recipe}-{made_of.hexdigest()[:16]}"

    def stamps(self) -> np.ndarray:
        """What the system says of the files at the first call: see mapped.stamp; int64 (N, 4)."""
        if self._stamps is None:
            stamps = [stamp(f"{self.root}/{name}") for name in self.files]
            self._stamps = np.array(stamps, dtype=np.int64)
        return self._stamps


def images_of(data_set: Samples) -> list[CachedImages]:
    """The CachedImages of a data set: its attribute `images` is one, or several in a list."""
    found = getattr(data_set, "images", None)
    several = found if isinstance(found, list | tuple) else [found]
    return [images for images in several if isinstance(images, CachedImages)]


def use_cache(
    data_sets: list[Any],
    where: str,
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
        where: "auto": beside the data, if it fits into memory and is used twice. "on": beside the
            data. "off": nowhere. Else the folder for it.
        epochs: How often each sample is used; an image may have several samples.
        device: The device of the model.
        world: The processes of the run.

    Raises:
        BadInput: One of the images is not readable, or `where` is a file, or probably no folder.
    """
    if where not in WHERE and (os.path.isfile(where) or where.lower() in NO_FOLDERS):
        raise BadInput(f"--cache {where}: is no folder; say auto, on, off, or name a folder")
    groups: dict[tuple[int, ...], list[Any]] = {}
    for data_set in data_sets if where != "off" else ():
        if found := images_of(data_set):
            groups.setdefault(tuple(map(id, found)), []).append(data_set)
    with world.local_rank_first():
        for sharing in groups.values():
            found = images_of(sharing[0])
            for images in found:
                uses = epochs * max(1, sum(map(len, sharing)) // len(images))
                _use_cache(images, where, uses)
            if device.type == "cuda":
                _move_if_few(sharing, found, device)


def _use_cache(images: CachedImages, where: str, uses: int) -> None:
    beside, folder = where in WHERE, folder_of(images, where)
    what, decoded, few = f"{len(images):,} images of {images.root}", "", _decode_few(images)
    images.mapped = _find(images, folder, few)
    if images.mapped is None:
        begun = time.perf_counter()
        expected = sum(image.nbytes for image in few.values()) * len(images) // len(few)
        if where == "auto" and (uses < 2 or expected > memory()):
            return
        try:
            images.mapped = _make(images, folder, few, expected)
        except OSError as error:
            # While an image was read, perhaps by a worker process, whose errors have no number.
            if error.errno is None or str(error.filename).startswith(f"{images.root}/"):
                raise
            text = f"no cache for {what}, decoded each time: {folder}: {error.strerror or error}"
            terminal.warn(text + "; --cache DIR keeps it elsewhere" * beside)
            return
        decoded = f"decoded in {time.perf_counter() - begun:.1f} s, "
    delete_unused(folder)
    place = folder.name if beside else folder
    terminal.say(f"cache: {what}, {decoded}{images.mapped.values.nbytes / 1e6:,.1f} MB in {place}")


def folder_of(images: CachedImages, where: str) -> Path:
    """The folder for what is kept of images: beside them, or the one that `where` names."""
    return images.data / ".cache" if where in WHERE else Path(where)


def _move_if_few(sharing: list[Any], found: list[CachedImages], device: torch.device) -> None:
    """Keeps the images on the GPU if they take an eighth of its free memory at most."""
    maps = [images.mapped for images in found if images.mapped is not None]
    size, free = sum(one.values.nbytes for one in maps), torch.cuda.mem_get_info(device)[0]
    # Single samples may be loaded by worker processes, which cannot use the memory of the GPU.
    single = any(whole_batch(data_set, torch.tensor([0])) is None for data_set in sharing)
    if len(maps) < len(found) or single or size >= free / 8:
        return
    for images, one in zip(found, maps, strict=True):
        one.to(device)
        terminal.say(f"cache: {len(images):,} images of {images.root} are kept on {device}")
    for data_set in sharing:
        data_set.to(device)


def _decode_few(images: CachedImages) -> dict[int, Tensor]:
    """Some of the images by their index, the first one among them."""
    indices = range(0, len(images), len(images) // CHECKED + 1)
    return {index: images._decode(images.path(index)) for index in indices}


def _find(images: CachedImages, folder: Path, few: dict[int, Tensor]) -> MappedImages | None:
    """The cache of these files in their present state, if there is one in a folder."""
    for path in folder.glob(glob.escape(images.name()) + "-*" + ENDING):
        one = open_whole(path)
        if one is not None and _is_of(one, images, few):
            with suppress(OSError):  # perhaps of another user
                os.utime(path)  # it is in use
            return one
    return None


def open_whole(path: Path) -> MappedImages | None:
    """The cache in a file; None if there is none, or not a whole one."""
    with suppress(OSError, EOFError, ValueError):
        return MappedImages(path)
    return None


def _is_of(one: MappedImages, images: CachedImages, few: dict[int, Tensor]) -> bool:
    """Whether the files have the content that a cache was made of.

    Those with the size, the times and the number that were noted then are trusted, but for a few,
    which were decoded: an option may be missing in the recipe, or the system may not tell. The
    bytes of others, which may have been moved or copied, are compared.
    """
    if any(not one[index].equal(image) for index, image in few.items()):
        return False
    before, stamps = one.records["stamp"], images.stamps()
    others = (before != stamps).any(axis=1).nonzero()[0]
    if (before[others, 0] != stamps[others, 0]).any():
        return False
    if len(others):
        terminal.say(
            f"cache: comparing {len(others):,} of {len(images):,} files of {images.root}, moved or "
            "copied since it was made"
        )
    for index in others.tolist():
        if (digest_file(images.path(index)).numpy() != one.records["digest"][index]).any():
            return False
    if len(others):
        one.restamp(stamps)
    return True


def _make(
    images: CachedImages, folder: Path, few: dict[int, Tensor], expected: int
) -> MappedImages:
    """Decodes all images into a file, whole or not at all."""

    def write(file: BinaryIO) -> str:
        records = mapped.write(file, _decode(images, few[0]), few[0], images.kind, images.stamps())
        content = hashlib.sha256(records["digest"].tobytes())
        for image in few.values():
            content.update(image.contiguous().numpy().tobytes())
        return f"{images.name()}-{content.hexdigest()[:16]}{ENDING}"

    return write_whole(folder, images.name(), expected, write)


def write_whole(
    folder: Path, stem: str, expected: int, write: Callable[[BinaryIO], str]
) -> MappedImages:
    """Writes a file of images, whole or not at all, and maps it into memory.

    Args:
        folder: It is made if necessary.
        stem: Begins the name while the file is not whole.
        expected: Its size in bytes, about.
        write: Writes it, and returns its name.

    Raises:
        OSError: There is no room, or no right to write there.
    """
    # A random name, since containers on several machines have equal process numbers.
    partial = folder / f"{stem}-{os.urandom(4).hex()}{ENDING}{PARTIAL}"
    try:
        folder.mkdir(exist_ok=True, parents=True)
        check_room(folder, expected)
        with open(partial, "wb") as file:
            path = folder / write(file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the name without the content
        if open_whole(path) is None:  # else it is that of another run, which may have it mapped
            os.replace(partial, path)
        return MappedImages(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
            folder.rmdir()  # it is empty only if the first cache failed


def check_room(folder: Path, size: int) -> None:
    """Raises OSError if a disk has no room for a file of so many bytes."""
    if disk_usage(folder).free < 1.2 * size + 2**28:
        raise OSError(errno.ENOSPC, f"the disk has no room for {size / 1e9:,.1f} GB")


def delete_unused(folder: Path) -> None:
    """Deletes caches that no run has used for a week, and the unfinished files of killed runs."""
    for ending, age in ((ENDING, UNUSED), (FEATURES, UNUSED), (ENDING + PARTIAL, UNFINISHED)):
        for path in folder.glob(f"*{ending}"):
            with suppress(OSError):  # Windows keeps what another run has mapped
                if path.stat().st_mtime < time.time() - age and not mapped.in_use(path):
                    path.unlink()


def _decode(images: CachedImages, first: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some images at a time, as mapped.write takes them."""
    sampler = EvalBatchSampler(len(images), 64)
    # On all cores if that takes longer than to start a process, which imports PyTorch unless it is
    # forked: a worker for each 2^16 images or 128 MiB of files.
    size = int(images.stamps()[:, 0].clip(0).sum())
    workers = min(cores(), int(len(images) / 2**16 + size / 2**27))
    decoding = _Decoding(images, (len(first), first.dtype))
    loader = Loader(decoding, sampler, torch.device("cpu"), workers, prefetch=0)
    bar = terminal.bar(desc=f"cache {images.root.name}", total=len(images), leave=False)
    with loader, loader.batches() as batches, bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[-1]))


@dataclass
class _Decoding(Dataset):
    """The images of a data set, in the form in which they are stored."""

    images: CachedImages
    form: tuple[int, torch.dtype]  # channels and type of the first one

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        rows, images = indices.tolist(), self.images
        # The bytes first: of a file that changes meanwhile the cache is made again.
        digests = torch.stack([digest_file(images.path(row)) for row in rows])
        found = [images.decode(row).permute(1, 2, 0) for row in rows]
        for row, image in zip(rows, found, strict=True):
            if (image.shape[2], image.dtype) != self.form:
                raise BadInput(
                    f"{images.path(row)}: read as {image.shape[2]} channels of {image.dtype}, and "
                    f"{images.path(0)} as {self.form[0]} of {self.form[1]}; read all alike"
                )
        sizes = torch.tensor([image.shape[:2] for image in found], dtype=torch.int32)
        sums = torch.stack([mapped.sums_of(image, images.kind) for image in found])
        return torch.cat([image.reshape(-1) for image in found]), sums, sizes, digests
