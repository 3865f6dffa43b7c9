"""The files that predict.py writes: their names, and what they must not replace."""

import os
import unicodedata
from collections import Counter
from functools import partial
from itertools import chain, count
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from engine.checkpoint import write_atomically
from engine.data.files import identity
from engine.errors import BadInput

MADE_BY = "predict.py"  # in each file, so that others are known and never replaced
LONGEST = 255  # bytes that the name of a file can have


def name_outputs(paths: list[str], inputs: list[str], out: Path) -> list[Path]:
    """A PNG in `out` for each input, below the folders that it has in the one all inputs share.

    Inputs that would have one output keep their own ending: x.jpg.png, x.png.png. Names that differ
    in case alone, or are too long, are numbered or cut off. A file that is named twice has one
    output.

    Args:
        paths: Files and folders as the user named them.
        inputs: The images in them.
        out: The folder of the outputs.

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
        names = [(name, ".png") for name in (path.stem, path.name)][path in own_ending :]
        numbered = ((path.name, f"-{n}.png") for n in count(2))
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
            return file.format == "PNG" and file.info.get("Software") == MADE_BY
    except Exception:  # damaged files make Pillow raise almost anything
        return False


def save_output(image: Tensor, path: Path) -> None:
    """Writes an image, uint8 (3, H, W), as PNG; its folder is made."""
    mark = PngInfo()
    mark.add_text("Software", MADE_BY)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = partial(to_pil_image(image).save, format="PNG", pnginfo=mark)
    write_atomically(path, write)
