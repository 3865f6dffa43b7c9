"""Images in files: which files count, and how they are read."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from engine.errors import BadInput
from engine.names import Names


def read_image(path: str | Path, least: tuple[int, int] | None = None) -> Image.Image:
    """Reads an image of any kind as RGB, upright, transparency on white.

    Args:
        path: The file.
        least: Width and height that are enough. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of
            its size, which is faster, but not smaller than this.

    Raises:
        BadInput: The file is not an image, or damaged.
    """
    try:
        with Image.open(path) as file:
            if least:
                file.draft(None, least)
            image: Image.Image = ImageOps.exif_transpose(file)  # cameras note which side is up
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
                image = image.convert("I").point(lambda value: value / 257, "L")
            if image.has_transparency_data:  # else the colour hidden behind it would show
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise _unreadable(path, error) from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it, from the head of the file.

    Raises:
        BadInput: The file is not an image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            sideways = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # as in read_image
        raise _unreadable(path, error) from None
    return (height, width) if sideways else (width, height)


def _unreadable(path: str | Path, error: Exception) -> BadInput:
    return BadInput(f"{path}: not readable as an image ({error}); replace it or take it away")


class ImageFiles(Dataset):
    """Images without labels, for predictions.

    Args:
        paths: Files, and folders whose images are all taken, those of subfolders included.
        load: From a path to a tensor; worker processes must be able to import it.

    Returns:
        For an index: a tuple of one tensor; `files` has its path.

    Raises:
        BadInput: A path does not exist, or a folder holds no image.
    """

    def __init__(self, paths: list[str], load: Callable[[str], Tensor]) -> None:
        files: list[str] = []
        self.load = load
        for path in map(Path, paths):
            if not path.exists():
                raise BadInput(f"{path}: no such file or folder")
            found = [str(path)] if path.is_file() else images_below(path)
            if not found:
                raise BadInput(f"{path}: no image in this folder")
            files += found
        self.files = Names(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.load(self.files[index]),)


def read_facts(folder: Path) -> dict:
    """What the dataset.json in a folder of images says, if there is one.

    `"flip": false` says that mirrored images are not what they were, as with letters.

    Raises:
        BadInput: The file cannot be read, or `flip` is neither true nor false.
    """
    path = folder / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error}); mend or delete it") from None
    if not isinstance(content, dict) or not isinstance(content.get("flip", True), bool):
        raise BadInput(f"{path}: must be an object whose flip is true or false; mend or delete it")
    return content


def images_below(folder: str | Path) -> list[str]:
    """The images in a folder and in its subfolders, in a fixed order; none that are hidden."""
    return [path for path in files_below(folder) if is_image(path)]


def files_below(folder: str | Path) -> list[str]:
    """The files in a folder and its subfolders, also linked ones, in a fixed order; none hidden."""
    found: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [os.path.join(root, name) for name in sorted(files) if not is_hidden(name)]
    return found


def is_image(path: str | Path) -> bool:
    """Whether a file counts as an image, by its name."""
    return not is_hidden(path) and str(path).lower().endswith(IMG_EXTENSIONS)


def is_hidden(path: str | Path) -> bool:
    """Whether a file is what Unix hides, or what Windows puts into folders by itself."""
    name = os.path.basename(path)
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")
