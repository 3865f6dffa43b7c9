"""Reading images with the channels and the depth that they are stored with: `--images stored`.

PNG of 8 and 16 bits, TIFF, .npy, and the kinds of 8 bits that images.py reads. Values are those of
the file; palettes and other descriptions of colours (CMYK, YCbCr) become RGB. What Pillow cannot
keep of a TIFF (pages, planes, several channels of more than 8 bits) tifffile reads, which is
optional, and imported here alone.
"""

import importlib
import logging
import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine import terminal
from engine.data.cache import CachedImages
from engine.data.images import (
    FIRST,
    UPRIGHT,
    check_pixels,
    naming,
    note,
    opened,
    orientation,
    raw_mode,
    remarks_on,
    tiff_pages,
    tiff_problem,
)
from engine.errors import BadInput

MODES = ("rgb", "stored")  # what `--images` may name
DEPTHS = ("uint8", "uint16", "float32")
# What float32 holds without a rounding.
WIDER = {"bool": "uint8", "int8": "float32", "int16": "float32", "float16": "float32"}
MOST_CHANNELS = 32
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY = b"\x93NUMPY"
# What Pillow reads as it is: bits and kind of number (1: unsigned, 2: signed, 3: float), of grey.
GREY = {(1, 1), (2, 1), (4, 1), (8, 1), (12, 1), (16, 1), (16, 2), (32, 3)}
CHANNEL_AXES = "SCI"  # samples of a pixel, channels, and pages that nothing else is known of


@dataclass(frozen=True)
class Form:
    """What all images of a set have alike."""

    channels: int
    depth: str  # one of DEPTHS
    of: str = field(default="", compare=False)  # what has it, for messages

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.depth}"

    @property
    def is_rgb(self) -> bool:
        """Whether they may be treated as RGB of 8 bits."""
        return self == RGB

    @property
    def dtype(self) -> torch.dtype:
        """The type of a sample, see `as_values`."""
        return torch.uint8 if self.depth == "uint8" else torch.float32


RGB = Form(3, "uint8")


def read_stored(path: str | Path, axes: str | None = None, like: Form | None = None) -> Tensor:
    """Reads an image with its own channels and depth, upright.

    Args:
        path: The file.
        axes: What the axes of an array of a TIFF or .npy file are, a letter for each: Y, X, and
            any other, which become channels in their order. None: as the file says.
        like: The form that it has to have.

    Returns:
        (C, H, W), of 1 to MOST_CHANNELS channels, uint8, uint16 or float32, finite.

    Raises:
        BadInput: The file is not an image or damaged, is of another form or none of these, its axes
            are ambiguous, or what reads it is not installed.
        OSError: The machine failed, or the file is gone.
    """
    with naming(path):
        found = _READERS[_kind(path)](path, axes)
    name = WIDER.get(found.dtype.name, found.dtype.name)
    if name not in DEPTHS:
        raise BadInput(
            f"{path}: its values are {name}, which float32 would round; save them as uint8, uint16 "
            "or float32"
        )
    if not 1 <= len(found) <= MOST_CHANNELS:
        raise BadInput(
            f"{path}: {len(found)} channels, and at most {MOST_CHANNELS} are read; name its axes "
            "by --axes if these are none"
        )
    form = Form(len(found), name)
    if like is not None and form != like:
        raise BadInput(f"{path}: has {form}, and {like.of} {like}; all have to be alike")
    values = np.array(found.transpose(1, 2, 0), dtype=name, order="C")
    if found.dtype == bool:
        values *= 255
    if name == "float32":
        _check_finite(path, values)
    return torch.from_numpy(values).permute(2, 0, 1)


def _check_finite(path: str | Path, values: np.ndarray) -> None:
    """Raises BadInput with the channels of an image (H, W, C) that have NaN or infinite values."""
    finite = np.isfinite(values)
    if not finite.all():
        channels = np.flatnonzero(~finite.all(axis=(0, 1))) + 1
        raise BadInput(
            f"{path}: NaN or infinite in channel {', '.join(map(str, channels))}; replace these "
            "values, or remove the file"
        )


def form_of_set(opt: Namespace, first: str | Path) -> Form | None:
    """The form that the images of a set have to have, that of the first; None for others."""
    return form_of(first, opt.axes) if opt.images == "stored" else None


def more_endings(images: str | None) -> tuple[str, ...]:
    """The endings of files that are images with this `--images`, besides files.ENDINGS."""
    return (".npy",) if images == "stored" else ()


def form_of(path: str | Path, axes: str | None = None) -> Form:
    """Channels and depth of an image; see `read_stored`."""
    image = read_stored(path, axes)
    return Form(len(image), str(image.dtype).removeprefix("torch."), str(path))


def stored_size(path: str | Path, axes: str | None = None) -> tuple[int, int]:
    """Width and height of an image as `read_stored` gives it, from the file's head.

    Raises:
        BadInput: As far as the head tells it.
        OSError: The machine failed, or the file is gone.
    """
    with naming(path):
        kind = _kind(path)
        if kind == "npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return _arrangement(path, shape, "", axes)[1]
        if kind == "tiff" and not _is_plain(tiff_pages(path)):
            return _with_tifffile(path, axes, size_only=True)
        with opened(path) as file:
            width, height = file.size
            if kind == "tiff":  # whose size Pillow turns, depending on its version
                width, height = (file.tag_v2[tag] for tag in (256, 257))
            return (height, width) if orientation(file) >= 5 else (width, height)


def as_values(images: Tensor) -> Tensor:
    """Images as samples hold them: uint16 as float32, which is exact, as PyTorch computes little
    with uint16; others as they are."""
    return images.float() if images.dtype == torch.uint16 else images


def to_depth(values: Tensor, depth: str) -> Tensor:
    """Float values as an image of one of DEPTHS may have them; uint8 as such, others float32."""
    if depth == "uint8":
        return values.round().clamp(0, 255).to(torch.uint8)
    return values.round().clamp(0, 65535) if depth == "uint16" else values


def by_channel(image: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Applies to each channel what resizes an image of Pillow's, as that does it to each of RGB.

    Those of 8 bits are of its mode L, others of mode F: resized in float32, and uint16 rounded.
    The image and the result are of one of DEPTHS.
    """
    deep = image.dtype != torch.uint8
    planes = (as_values(image) if deep else image).numpy()
    pictures = (Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    changed = np.stack([np.asarray(change(picture)) for picture in pictures])
    if image.dtype == torch.uint16:
        changed = changed.round().clip(0, 65535).astype(np.uint16)
    return torch.from_numpy(changed)


def mean_and_std(sums: Tensor, pixels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, to seven digits: so they depend on no order of sums.

    Args:
        sums: Of the values and of their squares, for some images: int64 or float64 (N, 2, C), as
            CachedImages.sums.
        pixels: The number of values of each channel in these.
    """
    means, deviations = [], []
    for channel in range(sums.shape[2]):
        total, squares = (_exact_sum(sums[:, i, channel]) for i in (0, 1))
        mean = total / pixels
        variance = squares / pixels - mean * mean
        if variance <= mean * mean * Fraction(1, 10**12):  # of float values: rounding alone
            variance = Fraction(0)
        means.append(float(f"{float(mean):.7g}"))
        deviations.append(float(f"{math.sqrt(variance):.7g}"))
    return means, deviations


def facts(images: CachedImages, rows: Tensor, form: Form) -> dict[str, Any]:
    """What a model has to know of images of a form, for `info`: see `trained_form`.

    That is "channels" and "depth" and, unless they are RGB of 8 bits, "mean" and "std" of each
    channel over those in `rows`, in the unit of the files. A channel of one value is named.
    """
    found: dict[str, Any] = {"channels": form.channels, "depth": form.depth}
    if form.is_rgb:
        return found
    means, deviations = mean_and_std(*images.sums(rows.unique()))
    for i, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        if deviation == 0:
            terminal.warn(f"{images.root}: channel {i + 1} is {mean:g} in all training images")
            deviations[i] = 1.0
    names = [f"channel {i + 1}" for i in range(form.channels)]
    found["mean"] = dict(zip(names, means, strict=True))
    return {**found, "std": dict(zip(names, deviations, strict=True))}


def extent(images: CachedImages, rows: Tensor, form: Form) -> tuple[float, float]:
    """The range of values of images of a form, by those in `rows`: its lowest and its highest one.

    Of uint8 that is 0 and 255; of uint16 0 and 2^k - 1 for as many bits as they need, 9 to 16, as
    cameras have 10, 12 or 14; of float32 their own extremes.
    """
    if form.depth == "uint8":
        return 0.0, 255.0
    ends = [as_values(images[row]).aminmax() for row in rows.unique().tolist()]
    low, high = float(min(end.min for end in ends)), float(max(end.max for end in ends))
    if form.depth == "uint16":
        return 0.0, float(2 ** max(9, int(high).bit_length()) - 1)
    if low == high:
        raise BadInput(f"{images.root}: all training images are {low:g} everywhere; take others")
    return low, high


def trained_form(info: dict[str, Any]) -> Form | None:
    """The form of the images of a training, by what `facts` told; None for `--images rgb`."""
    if "depth" not in info:
        return None
    return Form(info["channels"], info["depth"], "those of the training")


def _exact_sum(values: Tensor) -> Fraction:
    if values.is_floating_point():
        return Fraction(math.fsum(values.tolist()))
    high, low = values >> 32, values & 0xFFFFFFFF  # a sum of all might need more than 64 bits
    return Fraction((int(high.sum()) << 32) + int(low.sum()))


def _kind(path: str | Path) -> str:
    with open(path, "rb") as file:
        head = file.read(len(NPY))
    return "npy" if head == NPY else "tiff" if head[:4] in TIFF else "other"


def _read_npy(path: str | Path, axes: str | None) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    order, size = _arrangement(path, array.shape, "", axes)
    check_pixels(path, *size)
    return _arranged(array, order)


def _read_tiff(path: str | Path, axes: str | None) -> np.ndarray:
    return _read_other(path, axes) if _is_plain(tiff_pages(path)) else _with_tifffile(path, axes)


def _is_plain(pages: list[Any]) -> bool:
    """Whether Pillow keeps all of a TIFF, by the tags of its pages."""
    tags = pages[0]
    if sum(not page.get(254, 0) & 5 for page in pages) > 1:  # others are masks and smaller copies
        return False
    samples, bits = tags.get(277, 1), tags.get(258, (1,))
    if samples == 1 and tags.get(262, 1) in (0, 1):
        return (max(bits), max(tags.get(339, (1,)))) in GREY
    fourth = samples == 4 and tags.get(262) == 2 and tags.get(338, (0,)) == (0,)
    return not tiff_problem(tags) and max(bits) <= 8 and not fourth


def _read_other(path: str | Path, axes: str | None) -> np.ndarray:
    """An image as Pillow reads it, turned upright."""
    with opened(path) as file:
        if FIRST in remarks_on(path, file):
            note(path, FIRST)
        deep = "16" in raw_mode(file)
        if "transparency" in file.info and file.mode != "P":
            raise BadInput(
                f"{path}: one of its colours is transparent; save the transparency as a channel"
            )
        if file.format == "PNG" and deep and not file.mode.startswith("I"):
            return _upright(_read_png16(path, file), orientation(file))
        signed = raw_mode(file).endswith("S")
        file.load()
        method = UPRIGHT.get(orientation(file))
        image: Image.Image = file if method is None else file.transpose(method)
        if image.mode.startswith(("I", "F")):
            if file.format not in ("PNG", "TIFF"):
                raise BadInput(
                    f"{path}: more than 8 bits are read of PNG, TIFF and .npy; convert it to one "
                    "of them"
                )
            grey = np.asarray(image)
            kind = np.float32 if image.mode == "F" else np.int16 if signed else np.uint16
            return grey.astype(kind)[None]
        found = np.asarray(image.convert(_mode_of_8_bits(image)))
        return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


def _mode_of_8_bits(image: Image.Image) -> str:
    if image.mode in ("P", "PA"):
        return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"
    same = {"L", "LA", "RGB", "RGBA"}
    others = {"1": "L", "La": "LA", "RGBa": "RGBA"}
    return image.mode if image.mode in same else others.get(image.mode, "RGB")


def _read_png16(path: str | Path, file: Any) -> np.ndarray:
    """A PNG of several channels of 16 bits, (C, H, W), of which Pillow keeps the upper 8 alone.

    Read as if the bytes of a value were in the other order, it keeps the lower ones. Grey and alpha
    are read as four channels of 8 bits.
    """
    code = raw_mode(file)
    if code == "LA;16B":
        parts = np.asarray(_as_if(file, "RGBA", "RGBA")).astype(np.uint16)
        return np.stack([parts[..., i] << 8 | parts[..., i + 1] for i in (0, 2)])
    upper = np.asarray(file).astype(np.uint16)
    with opened(path) as again:
        lower = np.asarray(_as_if(again, file.mode, code.replace("16B", "16L")))
    return (upper << 8 | lower).transpose(2, 0, 1)


def _as_if(file: Any, mode: str, code: str) -> Any:
    """A file that Pillow has opened, to be decoded into another mode and by another raw mode."""
    file._mode = mode
    file.tile = [(*tuple(tile)[:3], code) for tile in file.tile]
    return file


def _upright(image: np.ndarray, turned: int) -> np.ndarray:
    """An image (C, H, W), turned as the tag Orientation, 1 to 8, says."""
    image = image.swapaxes(1, 2) if turned >= 5 else image
    rows, columns = turned in (3, 4, 7, 8), turned in (2, 3, 6, 7)
    return image[:, :: -1 if rows else 1, :: -1 if columns else 1]


@cache
def _tifffile() -> Any:
    try:
        found = importlib.import_module("tifffile")
    except ImportError:
        return None
    logging.getLogger("tifffile").disabled = True
    return found


def _with_tifffile(path: str | Path, axes: str | None, size_only: bool = False) -> Any:
    """An image as tifffile reads it, (C, H, W); or its width and height."""
    if _tifffile() is None:
        raise BadInput(
            f"{path}: pages, planes or channels of more than 8 bits, which tifffile reads: python "
            "-m pip install tifffile"
        )
    try:
        with _tifffile().TiffFile(path) as file:
            first, *others = file.series
            others = [one for one in others if not one.keyframe.subfiletype & 5]
            if others:
                raise BadInput(f"{path}: its pages differ in size or depth; save each as a file")
            order, (width, height) = _arrangement(path, first.shape, first.axes, axes)
            turned = int(first.keyframe.tags.valueof(274, 1))
            turned = turned if turned in UPRIGHT else 1
            if size_only:
                return (width, height) if turned < 5 else (height, width)
            check_pixels(path, width, height)
            return _upright(_arranged(first.asarray(), order), turned)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise BadInput(
            f"{path}: compressed in a way that takes imagecodecs: python -m pip install imagecodecs"
        ) from None


def _arranged(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """An array with its axes in another order, of which all but the last two become one."""
    array = array.transpose(order)
    return array.reshape(-1, *array.shape[-2:])


def _arrangement(
    path: str | Path, shape: tuple[int, ...], named: str, axes: str | None
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The order of an array's axes in which rows and columns are last; its width and height.

    Args:
        path: The file.
        shape: That of the array.
        named: The axes as the file names them, a letter for each; empty if it does not.
        axes: As the user does; those of length 1 may be left out.

    Raises:
        BadInput: They are ambiguous, or the user's do not fit.
    """
    sides = " x ".join(map(str, shape))
    if axes is None:
        letters = dict(enumerate(named or "Q" * len(shape)))
        letters = {i: a for i, a in letters.items() if a in "YX" or shape[i] > 1}
        letters = _guessed([*letters], shape) if "Q" in letters.values() else letters
        more = [letter for letter in letters.values() if letter not in "YX"]
        if len(letters) - len(more) < 2 or len(more) > 1 or not {*more} <= {*CHANNEL_AXES}:
            what = f"{named} ({sides})" if named else sides
            raise BadInput(
                f"{path}: its axes, {what}, may be read in several ways; name them by --axes, a "
                "letter for each: Y, X, and C for channels, as in --axes CYX"
            )
    else:
        places = [i for i, n in enumerate(shape) if n > 1 or len(axes) == len(shape)]
        if len(axes) != len(places):
            raise BadInput(f"{path}: --axes {axes} names {len(axes)} axes, and it has {sides}")
        letters = dict(zip(places, axes, strict=True))
    rows, columns = (next(i for i, a in letters.items() if a == side) for side in "YX")
    rest = (i for i in range(len(shape)) if i not in (rows, columns))
    return (*rest, rows, columns), (shape[columns], shape[rows])


def _guessed(places: list[int], shape: tuple[int, ...]) -> dict[int, str]:
    """Axes that nothing is known of: the one that alone is short enough has the channels."""
    if len(places) == 2:
        return dict(zip(places, "YX", strict=True))
    if len(places) == 3:
        short = [shape[i] <= MOST_CHANNELS for i in places]
        if short == [True, False, False]:
            return dict(zip(places, "CYX", strict=True))
        if short == [False, False, True]:
            return dict(zip(places, "YXC", strict=True))
    return dict.fromkeys(places, "Q")


def parse_axes(text: str) -> str:
    """A type for add_argument: the letters of `--axes`."""
    found = text.upper()
    if not found.isalpha() or len({*found}) != len(found) or not {*"YX"} <= {*found}:
        raise ArgumentTypeError(f"{text!r} has to name Y and X, each axis by a letter of its own")
    return found


_READERS: dict[str, Callable[[str | Path, str | None], np.ndarray]] = {
    "npy": _read_npy,
    "tiff": _read_tiff,
    "other": _read_other,
}
