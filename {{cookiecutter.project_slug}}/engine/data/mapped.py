"""The file of a cache: decoded images, mapped into memory, and what is known of each.

    values    of all images one after the other, rows from top to bottom, channels last
    sums      of each image, for statistics: see `sums_of`
    sizes     height and width of each, int32 (N, 2)
    digests   of the bytes of each image's file, uint8 (N, 16)
    stamps    of each image's file when these bytes were last read, int64 (N, 4): see `stamp`
    header    JSON: format, images (N), dtype, channels, kind, sums (their dtype and shape)
    end       the length of the header, int64, and MAGIC

Each part begins at a multiple of eight bytes.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from engine.data.files import reading_failed

FORMAT = 2  # of the file; with another number all caches are made again
MAGIC = b"pt-cache"
# What the values of an image are: brightness, the index of a class, or anything else.
KINDS = ("image", "index", "feature")
INDICES = 256  # of classes, in an image of the kind "index"
Part = dict[str, Tensor]  # values, sums, sizes and digests of some images


class MappedImages:
    """Images of one or several sizes, stored end to end.

    Attributes:
        path: The file that `values` is a map of; None if they were moved to another device.
        values: All images one after the other, each (H, W, C), of one type.
        sizes: Height and width of each image, int32 (N, 2).
        channels: C.
        stacked: `values` as (N, H, W, C), if all are of one size.
        sums, digests, stamps: See the beginning of this file.
    """

    def __init__(self, path: Path) -> None:
        """Maps a file into memory.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a whole cache.
        """
        self.path: Path | None = path
        with open(path, "rb") as file:
            _share(file)  # the map keeps the lock
            # Read-only: the pages of a writable map would have to fit into memory.
            content = np.memmap(file, np.uint8, "r")
        end = len(content) - 8 - len(MAGIC)
        if end < 0 or content[end + 8 :].tobytes() != MAGIC:
            raise ValueError("not a cache")
        start = end - int(content[end : end + 8].view(np.int64)[0])
        header = json.loads(content[start:end].tobytes())
        count, self.channels, self.kind = (header[key] for key in ("images", "channels", "kind"))
        if header["format"] != FORMAT or count < 1 or self.channels < 1:
            raise ValueError("a cache of another format")
        self._stamps_at = start - 32 * count
        self.stamps = content[self._stamps_at : start].view(np.int64).reshape(count, 4).copy()
        start = self._stamps_at - 16 * count
        self.digests = content[start : start + 16 * count].reshape(count, 16)
        start -= 8 * count
        sizes = content[start : start + 8 * count].view(np.int32).reshape(count, 2).copy()
        kind, shape = header["sums"]
        length = count * int(np.prod(shape)) * np.dtype(kind).itemsize
        start -= length
        self.sums = content[start : start + length].view(kind).reshape(count, *shape)
        self.sizes = torch.from_numpy(sizes)
        areas = self.sizes[:, 0].long() * self.sizes[:, 1]
        dtype = np.dtype(header["dtype"])
        length = int(areas.sum()) * self.channels * dtype.itemsize
        if bool((self.sizes < 1).any()) or -(-length // 8) * 8 != start:
            raise ValueError("not the values of images of these sizes")
        self.ends = areas.cumsum(0) * self.channels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch has no read-only tensors
            self._set_values(torch.from_numpy(content[:length].view(dtype)))

    def _set_values(self, values: Tensor) -> None:
        self.values, self.stacked = values, None
        if bool((self.sizes == self.sizes[0]).all()):
            height, width = self.sizes[0].tolist()
            self.stacked = values.view(len(self.sizes), height, width, self.channels)

    def to(self, device: torch.device) -> None:
        """Moves the values to the memory of a device."""
        self._set_values(self.values.to(device))
        self.path = None

    def __getstate__(self) -> dict:
        """For worker processes that are not forked: they map the file themselves."""
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __getitem__(self, index: int) -> Tensor:
        """An image of its own, (C, H, W), that may be changed."""
        height, width = self.sizes[index].tolist()
        end = int(self.ends[index])
        image = self.values[end - height * width * self.channels : end].clone()
        return image.view(height, width, self.channels).permute(2, 0, 1)

    def restamp(self, stamps: np.ndarray) -> None:
        """Notes that the files, with these stamps now, have the content they had."""
        self.stamps = stamps
        with suppress(OSError), open(str(self.path), "r+b") as file:  # perhaps of another user
            file.seek(self._stamps_at)
            file.write(stamps.tobytes())


def write(
    file: BinaryIO, parts: Iterator[Part], kind: str, channels: int, stamps: np.ndarray
) -> None:
    """Writes a file of images of one type.

    Args:
        file: Opened for writing.
        parts: The images, some at a time: values (H * W * C of each, end to end), sums, sizes and
            digests of each.
        kind: One of KINDS.
        channels: Those of each image.
        stamps: Those of the files, int64 (N, 4).
    """
    kept: list[Part] = []
    for part in parts:
        values = part.pop("values").numpy()
        _put(file, values, pad=False)
        kept.append(part)
    file.write(bytes(-file.tell() % 8))
    sums, sizes, digests = (
        torch.cat([part[name] for part in kept]).numpy() for name in ("sums", "sizes", "digests")
    )
    for known in (sums, sizes, digests, stamps):
        _put(file, known)
    header: dict[str, Any] = {"format": FORMAT, "images": len(sizes), "kind": kind}
    header |= {"dtype": str(values.dtype), "channels": channels}
    header["sums"] = [str(sums.dtype), sums.shape[1:]]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(text + np.int64(len(text)).tobytes() + MAGIC)


def _put(file: BinaryIO, values: np.ndarray, pad: bool = True) -> None:
    file.write(np.ascontiguousarray(values).data if values.size else b"")
    if pad:
        file.write(bytes(-values.nbytes % 8))


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


def _share(file: BinaryIO) -> None:
    """Tells others that the file is in use, as far as the file system can."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def in_use(path: Path) -> bool:
    """Whether a process of any machine has the file mapped, or may have."""
    try:
        import fcntl

        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows deletes no file that is mapped
        return False
    except OSError:
        return True
    return False
