"""Reading images; random flips of batches."""

import logging
import re
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from torch import Generator, Tensor
from torch.utils.data import get_worker_info

from engine import terminal
from engine.data.files import reading_failed
from engine.errors import BadInput

# Whose size, depth and channels are known from their heads.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM"),
    *("TGA", "QOI", "PCX", "JPEG2000"),
)
MOST_PIXELS = 2**30  # as RGBA 4 GiB
MOST_TEXT = 2**28  # bytes of metadata
UPRIGHT = {  # what undoes each value of the tag Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ALPHA = "transparency becomes white"
FOURTH = "a fourth channel, which is no transparency, is left out"
FIRST = "only the first of several pictures is read"
TOO_DEEP = "has {} in each channel, and would lose levels; convert it to 8 bits"
KEEP = ", or keep all of it with --images stored"  # what stored.py reads; an end of messages
ARCHIVE = "an archive; unpack it, or remove it"
# What a file is that Pillow cannot identify, by its first bytes, and what to do.
KINDS = {
    rb"\Z": "empty; replace or remove it",
    rb"\0+\Z": "nothing but zeros, as after a crash; replace or remove it",
    rb".{4}ftyp(hei|hev|mif|msf)": "a HEIC image; convert it to JPEG or PNG",
    rb".{4}ftypavi": "an AVIF image, which this Pillow cannot read; pip install -U pillow",
    rb".{4}ftyp": "a video; replace or remove it",
    rb"\xff\x0a|.{4}JXL ": "a JPEG XL image; convert it to JPEG or PNG",
    rb"version https://git-lfs": "a pointer of Git LFS; fetch its file with git lfs pull",
    rb"(\.\./)*(\.git)?/annex/": "a pointer of git-annex; fetch its file with git annex get",
    rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml.*)?<svg": "a drawing (SVG); convert it to PNG",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|body)": "a page of HTML, as after a failed "
    "download; download it again, or remove it",
    rb"%PDF": "a PDF document; convert it to PNG",
    rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc": ARCHIVE,
    rb"\xff\xd8.*\xff[\xc0-\xc3]\0[\x0b\x11\x14][\x09-\x10]": "a JPEG image of more than 8 "
    "bits; convert it to 8 bits",
    rb"[\t\n\r -~]+\Z": "a text; replace or remove it",
}
_noted = deque[str]()  # what was said once; as a set it would count as code: see source.digest_of


def read_image(path: str | Path, least: tuple[int, int] | None = None) -> Image.Image:
    """Reads an image of 8 bits as RGB, upright, transparency on white, of several pictures one.

    Args:
        path: The file.
        least: Width and height that are enough. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of
            its size, which is faster, but not smaller than this.

    Raises:
        BadInput: The file is not an image, damaged, or would lose grey levels, channels or pages.
        OSError: The machine failed, or the file is gone.
    """
    image, remarks = inspect_image(path, least)
    for remark in remarks:
        if remark != ALPHA:
            note(path, remark)
    return image


def note(path: str | Path, remark: str) -> None:
    """Warns of what is left out of an image, once in a run."""
    # Of the worker processes only the first one says it.
    if remark not in _noted and getattr(get_worker_info(), "id", 0) == 0:
        _noted.append(remark)
        terminal.warn(f"{path}: {remark}; also of others like it")


def inspect_image(
    path: str | Path, least: tuple[int, int] | None = None
) -> tuple[Image.Image, list[str]]:
    """As `read_image`, with what is left out of the image: ALPHA, FOURTH, FIRST."""
    with _opened(path) as (file, remarks):
        if least:
            file.draft(None, least)
        key, code = file.info.get("transparency"), raw_mode(file)
        colours_given = _palette_size(file)
        file.load()
        _check_indices(file, colours_given, key)
        method = UPRIGHT.get(orientation(file))
        image: Image.Image = file if method is None else file.transpose(method)
        if image.mode.startswith("I"):
            return _eight_bits(path, np.asarray(image), key), remarks
        tags = file.tag_v2 if file.format == "TIFF" else {}
        if image.mode in ("P", "PA") and (colours := tags.get(320)) and max(colours) < 256:
            # A colour map of 8 bits in the place of 16, which would be black.
            image.putpalette(np.reshape(colours, (3, -1)).T.astype(np.uint8).tobytes())
        if code in ("L;2", "L;4") and key is not None:  # Pillow scales the pixels, but not this
            image.info["transparency"] = key * (85 if code == "L;2" else 17)
        if ALPHA in remarks:  # else the colour hidden behind it would show
            image = image.convert("LA") if image.mode == "La" else image
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB"), remarks


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it; see `image_head`."""
    return image_head(path)[0]


def image_head(path: str | Path) -> tuple[tuple[int, int], list[str]]:
    """Width and height of an image, and what `inspect_image` leaves out, from the file's head.

    Raises:
        BadInput: As far as the head tells it.
        OSError: The machine failed, or the file is gone.
    """
    with _opened(path) as (file, remarks):
        width, height = file.size
        if file.format == "TIFF":  # whose size Pillow turns, depending on its version
            width, height = (file.tag_v2[tag] for tag in (256, 257))  # type: ignore[attr-defined]
        return ((height, width) if orientation(file) >= 5 else (width, height)), remarks


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """An image file that Pillow has opened, of a size that is read; errors name it."""
    _lift_limits()
    with naming(path), Image.open(path) as file:
        check_pixels(path, *file.size)
        if file.format == "TIFF":
            file.filename = ""  # else Pillow maps it into memory, where turned images are garbled
            _check_parts(file.tag_v2)  # type: ignore[attr-defined]
        yield file


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, list[str]]]:
    """An image file of which nothing is lost but what the remarks say; errors name it."""
    with opened(path) as file:
        if problem := _problem(path, file):
            raise BadInput(f"{path}: {problem}")
        yield file, remarks_on(path, file)


def check_pixels(path: str | Path, width: int, height: int) -> None:
    """Raises BadInput if an image is too large."""
    if width * height > MOST_PIXELS:
        raise BadInput(
            f"{path}: {width} x {height} pixels are more than the {MOST_PIXELS:,} that are read; "
            "reduce it, or cut it into several"
        )


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turns the errors of a block that reads an image into such as name it."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadInput(f"{path}: not readable as an image: {_unknown(path)}") from None
    except Exception as error:  # damaged files make Pillow raise almost anything
        if isinstance(error, OSError) and error.errno:
            raise reading_failed(path, error) from None
        reason = str(error) or "damaged"
        raise BadInput(
            f"{path}: not readable as an image ({reason}); replace or remove it"
        ) from None


@cache
def _lift_limits() -> None:
    """Pillow guards servers: against much metadata, large images, and what is odd but not fatal."""
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_TEXT
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL.TiffImagePlugin").disabled = True


def orientation(file: Image.Image) -> int:
    """1 to 8: the tag in its EXIF or XMP, if that can be read; after `load` what is left to do."""
    try:
        value = file.getexif().get(ExifTags.Base.Orientation, 1)
    except OSError:
        raise
    except Exception:  # damaged EXIF, which other programs do not look at
        return 1
    return value if value in UPRIGHT else 1


def raw_mode(file: Any) -> str:
    """How Pillow unpacks the pixels, before they are loaded."""
    arguments = file.tile[0][3] if file.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _problem(path: str | Path, file: Any) -> str:
    """What an image would lose that has to be kept, and what to do; nothing for most."""
    bits = ""
    if file.format not in FORMATS:
        return f"an image of the kind {file.format}, which is not read; convert it to PNG"
    if file.format == "TIFF":
        # Smaller copies of a picture and masks are no pages.
        several = tiff_pages(path) if file.tag_v2.next else []
        pages = sum(not tags.get(254, 0) & 5 for tags in several)
        if pages > 1:
            return f"a TIFF of {pages} pages; save each as a file of its own{KEEP}"
        return tiff_problem(file.tag_v2)
    if file.format in ("BMP", "DIB") and file.mode in ("1", "L"):
        found = _find(path, rb"\A(?:BM.{12})?(?:\x0c.{9}|[^\x0c].{13})([\x01\x04\x08])")
        if found and found[1] != {"1": b"\x01", "L": b"\x08"}[file.mode]:
            # Pillow takes a palette of greys for a number of bits, and misreads the pixels.
            return "a BMP of few greys, of a rare kind; convert it to 24 bits or to PNG"
    if file.format == "PNG" and "16" in raw_mode(file) and not file.mode.startswith("I"):
        return TOO_DEEP.format("16 bits") + KEEP
    elif file.format == "PPM" and isinstance(arguments := file.tile[0][3], tuple):
        most = arguments[-1]
        if file.mode == "F" or 255 < most < 65535 or (file.mode == "RGB" and most > 255):
            bits = "float values" if file.mode == "F" else f"values up to {most}"
    elif file.format == "JPEG2000" and (found := _find(path, rb"\xff\x4f\xff\x51.{38}(.)")):
        bits = f"{found[1][0] % 128 + 1} bits" if found[1][0] % 128 > 7 else ""
    elif file.format == "AVIF" and (found := _find(path, rb"av1C..(.)")):
        bits = ("", "", "10 bits", "12 bits")[found[1][0] >> 5 & 3]
    return TOO_DEEP.format(bits) if bits else ""


def _find(path: str | Path, pattern: bytes, size: int = 2**16) -> re.Match[bytes] | None:
    with open(path, "rb") as file:
        return re.search(pattern, file.read(size), re.DOTALL)


def tiff_pages(path: str | Path) -> list[Any]:
    """The tags of each page of a TIFF, also of those that Pillow does not know."""
    pages: list[Any] = []
    with open(path, "rb") as file:
        header = file.read(8)
        header += file.read(8 if header[2:4] in (b"+\0", b"\0+") else 0)  # more than 4 GB
        places = [TiffImagePlugin.ImageFileDirectory_v2(header).next]
        while places[-1] and places[-1] not in places[:-1]:
            file.seek(places[-1])
            pages.append(TiffImagePlugin.ImageFileDirectory_v2(header))
            pages[-1].load(file)
            places.append(pages[-1].next)
    return pages


def tiff_problem(tags: Any) -> str:
    kind, channels, extra = tags.get(262, 0), tags.get(277, 1), tags.get(338, ())
    bits, numbers = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
    colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(kind, 1)  # RGB, CMYK, YCbCr, Lab; else grey or indices
    if kind in (8, 9, 10):
        return "its colours are Lab, which is not read; convert it to RGB"
    if kind == 6 and tags.get(259, 1) == 1 and tuple(tags.get(530, (2, 2))) != (1, 1):
        return "its colours are YCbCr in fewer pixels, which is not read; convert it to RGB"
    if channels > colours + (kind == 2 or extra in ((1,), (2,))):
        return f"a TIFF of {channels} channels, of which some would be lost; save 1, 3 or 4{KEEP}"
    keep = KEEP if bits <= (32 if numbers == 3 else 16) else ""
    if numbers != 1:
        what = {2: "signed values", 3: f"{bits}-bit float values"}.get(numbers)
        return TOO_DEEP.format(what) + keep
    # Grey of 16 bits is looked at when it is read: it may have been made of 8 bits.
    if bits > 8 and (bits, channels, kind) != (16, 1, 1):
        return TOO_DEEP.format(f"{bits} bits") + keep
    return ""


def _check_parts(tags: Any) -> None:
    """Raises ValueError if a TIFF lacks strips or tiles, which Pillow would leave black."""
    width, height = tags[256], tags[257]
    tiled = 324 in tags
    across, down = (tags[322], tags[323]) if tiled else (width, min(tags.get(278, height), height))
    planes = tags.get(277, 1) if tags.get(284, 1) == 2 else 1
    wanted = planes * -(-width // max(across, 1)) * -(-height // max(down, 1))
    found = sum(place > 0 for place in tags.get(324 if tiled else 273, ()))
    if 0 < found < wanted:  # without any Pillow says so
        raise ValueError(f"has {found} of {wanted} {'tiles' if tiled else 'strips'}")


def _palette_size(file: Any) -> int:
    """How many colours the palette of an image has, before it is loaded; 0 without one."""
    if file.mode not in ("P", "PA") or file.palette is None:
        return 0
    code = file.palette.rawmode or file.palette.mode
    return len(file.palette.palette) // len(code.partition(";")[0])


def _check_indices(file: Image.Image, count: int, clear: Any) -> None:
    """Raises ValueError if a pixel has none of the colours of its palette: it would be black."""
    if 0 < count < 256:
        used = file.getchannel(0).histogram()
        beyond = [i for i in range(count, 256) if used[i] and i != clear]
        if beyond:
            raise ValueError(f"uses colour {beyond[-1]}, and its palette ends at {count - 1}")


def remarks_on(path: str | Path, file: Any) -> list[str]:
    tags = file.tag_v2 if file.format == "TIFF" else {}
    if tags.get(262) == 2 and tags.get(277) == 4 and tags.get(338, (0,)) == (0,):
        return [FOURTH]
    no_alpha = rb".{17}[\x00\x10\x20\x30]"  # the bits of transparency are 0 by the file's head
    if file.format == "TGA" and file.mode == "RGBA" and _find(path, no_alpha, 18):
        return [FOURTH]
    remarks = [ALPHA] if file.has_transparency_data else []
    return [*remarks, FIRST] if not tags and getattr(file, "is_animated", False) else remarks


def _eight_bits(path: str | Path, values: np.ndarray, clear: int | None) -> Image.Image:
    """An image of grey values of 16 bits (H, W), if they were made of 8; one value is clear."""
    shown = np.ones_like(values, dtype=bool) if clear is None else values != clear
    seen = values[shown]
    if (seen % 257).any():
        text = f"16 bits ({seen.min()} to {seen.max()})"
        keep = KEEP if str(path).lower().endswith((".png", ".tif", ".tiff")) else ""
        raise BadInput(f"{path}: {TOO_DEEP.format(text)}{keep}")
    grey = np.where(shown, values // 257, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def known_kind(path: str | Path) -> str:
    """What a file is that should be another one, by its first bytes, and what to do; or nothing."""
    with open(path, "rb") as file:
        head = file.read(2**16)
    found = (what for pattern, what in KINDS.items() if re.match(pattern, head, re.DOTALL))
    return next(found, "")


def _unknown(path: str | Path) -> str:
    """What a file is that Pillow cannot identify, and what to do."""
    if what := known_kind(path):
        return what
    try:
        return tiff_problem(tiff_pages(path)[0]) or "a TIFF of a rare kind; convert it to PNG"
    except Exception:  # it is none
        return "of no kind that is known, or damaged; replace or remove it"


def flip(images: Tensor, random: Generator) -> Tensor:
    """Mirrors about half of the images of a batch, left to right.

    To mirror the two images of a pair alike, concatenate their channels first.

    Args:
        images: (N, C, H, W) of any type.
        random: The generator to draw from, on the device of the images.

    Returns:
        The same shape and type.
    """
    mirrored = torch.rand(len(images), generator=random, device=images.device) < 0.5
    whole = images.permute(0, 2, 3, 1)  # the order in memory
    # torch.where would be shorter and, on the CPU, take two to four times as long.
    rows = torch.arange(len(images), device=images.device) + len(images) * mirrored
    return torch.cat([whole, whole.flip(2)]).index_select(0, rows).permute(0, 3, 1, 2)
