"""The file of a cache: decoded images, mapped into memory, and what is known of each.

records   a .npy array with one record for each image, of these fields:
              sums      for statistics: see `sums_of`
              size      height and width, int32
              digest    of the bytes of its file, uint8 (16,)
              stamp     of its file when these were last read, int64 (4,): see `stamp`
pixels    a .npy array (0, C), whose type is that of the values
values    of all images one after the other, rows from top to bottom, channels last
"""

import hashlib
import io
import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from engine.data.files import reading_failed

FORMAT = 3  # of the file; with another number all caches are made again
# What the values of an image are: brightness, the index of a class, or anything else.
KINDS = ("image", "index", "feature")
INDICES = 256  # of classes, in an image of the kind "index"


class MappedImages:
    """Images of one or several sizes, stored end to end.

    Attributes:
        path: The file that `values` is a map of; None if they were moved to another device.
        records: See the beginning of this file; as `values`.
        sizes: Height and width of each image, int32 (N, 2).
        stacked: `values` as (N, H, W, C), if all are of one size.
    """

    def __init__(self, path: Path) -> None:
        """Maps a file into memory.

        Raises:
            OSError: It cannot be read.
            EOFError, ValueError: It is not a whole cache.
        """
        self.path: Path | None = path
        with open(path, "rb") as file:
            with suppress(OSError):  # not every file system has locks
                _lock(file, exclusive=False)  # which the map of the values keeps
            # Read-only: the pages of a writable map would have to fit into memory.
            self.records: Any = np.load(path, mmap_mode="r")
            file.seek(self.records.offset + self.records.nbytes)
            pixels = np.load(file)
            values = np.memmap(file, pixels.dtype, "r", file.tell())
        self.channels = pixels.shape[1]
        self.sizes = torch.from_numpy(self.records["size"].copy())
        self.ends = self.sizes.long().prod(1).cumsum(0) * self.channels
        if bool((self.sizes < 1).any()) or len(values) != self.ends[-1]:
            raise ValueError("not the values of images of these sizes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch has no read-only tensors
            self._set_values(torch.from_numpy(values))

    def _set_values(self, values: Tensor) -> None:
        self.values, self.stacked = values, None
        if bool((self.sizes == self.sizes[0]).all()):
            self.stacked = values.view(-1, *self.sizes[0].tolist(), self.channels)

    def to(self, device: torch.device) -> None:
        """Moves the values to the memory of a device."""
        self._set_values(self.values.to(device))
        self.path = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For worker processes that are not forked: they map the file themselves."""
        return MappedImages, (self.path,)

    def __getitem__(self, index: int) -> Tensor:
        """An image of its own, (C, H, W), that may be changed."""
        height, width = self.sizes[index].tolist()
        end = int(self.ends[index])
        image = self.values[end - height * width * self.channels : end].clone()
        return image.view(height, width, self.channels).permute(2, 0, 1)

    def restamp(self, stamps: np.ndarray) -> None:
        """Notes that the files, with these stamps now, have the content they had."""
        with suppress(OSError):  # perhaps of another user
            np.load(str(self.path), mmap_mode="r+")["stamp"][:] = stamps


def write(
    file: BinaryIO,
    parts: Iterable[tuple[Tensor, ...]],
    first: Tensor,
    kind: str,
    stamps: np.ndarray,
) -> np.ndarray:
    """Writes a file of images of one type; returns their records.

    Args:
        file: Opened for writing.
        parts: The images, some at a time: values (H * W * C of each, end to end), sums, sizes and
            digests of each.
        first: The first image, (C, H, W).
        kind: One of KINDS.
        stamps: Those of the files, int64 (N, 4).
    """
    sums = sums_of(first.permute(1, 2, 0), kind).numpy()
    fields = [("sums", sums.dtype, sums.shape), ("size", np.int32, 2), ("digest", np.uint8, 16)]
    records = np.zeros(len(stamps), [*fields, ("stamp", np.int64, 4)])
    records["stamp"] = stamps
    _save(file, records)  # so much room is needed
    _save(file, np.empty((0, len(first)), first.numpy().dtype))
    done = 0
    for values, *known in parts:
        file.write(values.numpy().data)
        rows = slice(done, done + len(known[0]))
        for name, value in zip(("sums", "size", "digest"), known, strict=True):
            records[name][rows] = value
        done = rows.stop
    file.seek(0)
    _save(file, records)
    return records


def _save(file: BinaryIO, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)  # to a file on a full disk it raises an error that does not say so
    file.write(content.getbuffer())


def sums_of(image: Tensor, kind: str) -> Tensor:
    """What statistics of many images are added up from, without a rounding for integers.

    Args:
        image: (H, W, C).
        kind: One of KINDS.

    Returns:
        Of indices, how often each of 0..255 stands in the image: int64 (256,). Else the sum of the
        values and that of their squares, for each channel: int64 or float64 (2, C).
    """
    values = image.reshape(-1, image.shape[-1])
    if kind == "index":
        return torch.bincount(values.flatten().long(), minlength=INDICES)
    wide = values.double() if values.is_floating_point() else values.long()
    return torch.stack([wide.sum(0), (wide * wide).sum(0)])


def stamp(path: str) -> tuple[int, int, int, int]:
    """What changes with the content of a file: bytes, times of change in ns, number of the file."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere; reading it raises an error that names it
        return -1, -1, -1, -1
    number = status.st_ino % 2**63  # some file systems use all 64 bits, or more
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, number


def digest_file(path: str) -> Tensor:
    """A digest of the bytes of a file, uint8 (16,).

    Raises:
        BadInput: It may not be read.
        OSError: The machine failed, or the file is gone.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise reading_failed(path, error) from None
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def in_use(path: Path) -> bool:
    """Whether a process of any machine has the file mapped, or may have."""
    try:
        with open(path, "r+b") as file:
            _lock(file, exclusive=True)
    except OSError:
        return True
    return False


def _lock(file: BinaryIO, exclusive: bool) -> None:
    """Tells others that the file is in use; raises OSError if that cannot be."""
    try:
        import fcntl
    except ImportError:  # Windows deletes no file that is mapped
        return
    fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
