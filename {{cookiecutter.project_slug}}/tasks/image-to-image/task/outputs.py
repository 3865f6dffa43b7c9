"""The files that predict.py writes: their names, and what they must not replace."""

import os
import struct
import unicodedata
import zlib
from collections import Counter
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from engine.checkpoint import write_atomically
from engine.data.files import identity
from engine.data.stored import Form
from engine.errors import BadInput

MADE_BY = "predict.py"  # in each file, so that others are known and never replaced
SOFTWARE = 305  # the tag of a TIFF that has it
LONGEST = 255  # bytes that the name of a file can have


def ending_of(form: Form) -> str:
    """The ending of outputs: PNG holds 1 to 4 channels of 8 or 16 bits, TIFF the others."""
    return ".png" if form.channels <= 4 and form.depth != "float32" else ".tif"


def name_outputs(
    paths: list[str], inputs: list[str], out: Path, ending: str = ".png"
) -> list[Path]:
    """A PNG in `out` for each input, below the folders that it has in the one all inputs share.

    Inputs that would have one output keep their own ending: x.jpg.png, x.png.png. Names that differ
    in case alone, or are too long, are numbered or cut off. A file that is named twice has one
    output.

    Args:
        paths: Files and folders as the user named them.
        inputs: The images in them.
        out: The folder of the outputs.
        ending: That of all outputs.

    Raises:
        BadInput: An output would replace something that predict.py has not written, or an input, or
            be an input the next time.
    """
    relative = _below_shared(paths, inputs)
    once = dict.fromkeys(relative)
    stems = Counter(_alike(path.with_name(path.stem)) for path in once)
    own_ending = {path for path in once if stems[_alike(path.with_name(path.stem))] > 1}
    found: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in sorted(once, key=lambda path: path not in own_ending):  # those have no choice
        names = [(name, ending) for name in (path.stem, path.name)][path in own_ending :]
        numbered = ((path.name, f"-{n}{ending}") for n in count(2))
        places = (path.with_name(_cut(*name)) for name in chain(names, numbered))
        found[path] = next(place for place in places if _alike(place) not in taken)
        taken.add(_alike(found[path]))
    outputs = [out / found[path] for path in relative]
    _check_replaced(outputs, inputs, out)
    for folder in paths:
        if os.path.isdir(folder) and out.resolve().is_relative_to(Path(folder).resolve()):
            raise BadInput(
                f"--out {out}: lies in {folder}, so the outputs would be among the images the next "
                "time; name a folder outside"
            )
    return outputs


def _below_shared(paths: list[str], inputs: list[str]) -> list[Path]:
    """The path of each input below the folder that all of them share, or that was named."""
    files = [Path(os.path.abspath(path)) for path in inputs]
    named = [Path(os.path.abspath(path)) for path in paths if os.path.isdir(path)]
    folders = {path.parent for path in files}
    alone = [path for path in folders if not any(path.is_relative_to(above) for above in named)]
    shared = os.path.commonpath([*named, *alone])
    return [path.relative_to(shared) for path in files]


def _alike(path: Path) -> str:
    """The same text for two paths that are one file on some disks, as a.png and A.png."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _cut(name: str, end: str) -> str:
    """`name` and its new ending, in as many bytes as a name can have."""
    while len(os.fsencode(name + end)) > LONGEST:
        name = name[:-1]
    return name + end


def _check_replaced(outputs: list[Path], inputs: list[str], out: Path) -> None:
    """Raises BadInput if an output would replace an input or what predict.py has not written."""
    for folder in {folder for path in outputs for folder in path.parents}:
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"--out {out}: {folder} is a file; name a folder")
    there = [path for path in outputs if path.exists()]
    originals = {identity(path) for path in inputs if there and os.path.exists(path)}
    for path in there:
        if identity(path) in originals or not _is_ours(path):
            raise BadInput(
                f"--out {out}: {path} would be overwritten, and is no output of predict.py; name "
                "another folder"
            )


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            made_by = {"PNG": file.info.get("Software"), "TIFF": file.getexif().get(SOFTWARE)}
            return made_by.get(file.format or "") == MADE_BY
    except Exception:  # damaged files make Pillow raise almost anything
        return False


def save_output(image: Tensor, path: Path, depth: str = "uint8") -> None:
    """Writes an image (C, H, W) in a depth of engine.data.stored, by the ending of `path`.

    Its folder is made. A TIFF has a page for each channel.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.ascontiguousarray(image.permute(1, 2, 0).numpy().astype(depth))
    if path.suffix == ".png" and depth == "uint16":
        return write_atomically(path, lambda file: file.write(_png16(values)))
    if path.suffix == ".png":
        mark = PngInfo()
        mark.add_text("Software", MADE_BY)
        picture = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        return write_atomically(path, partial(picture.save, format="PNG", pnginfo=mark))
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    first, *others = (Image.fromarray(plane) for plane in planes)
    how: dict[str, Any] = {"save_all": True, "append_images": others}
    write = partial(first.save, format="TIFF", tiffinfo={SOFTWARE: MADE_BY}, **how)
    return write_atomically(path, write)


def _png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, which Pillow writes of grey alone: uint16 (H, W, C), C from 1 to 4."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    step = 2 * channels
    differences = rows.copy()  # of each byte to that of the pixel before, the filter Sub
    differences[:, step:] -= rows[:, :-step]
    content = np.hstack([np.ones((height, 1), np.uint8), differences]).tobytes()
    head = struct.pack(">2I5B", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    parts = {
        b"IHDR": head,
        b"tEXt": b"Software\0" + MADE_BY.encode(),
        b"IDAT": zlib.compress(content, 6),
        b"IEND": b"",
    }
    file = b"\x89PNG\r\n\x1a\n"
    for name, part in parts.items():
        named = name + part
        file += struct.pack(">I", len(part)) + named + struct.pack(">I", zlib.crc32(named))
    return file
