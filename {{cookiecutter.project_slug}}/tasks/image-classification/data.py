"""What a sample is: an image out of a folder that is named after its class.

    DIR/train/CLASS/any_name.jpg
    DIR/test/CLASS/any_name.jpg

A file DIR/dataset.json may say where the images are from, and `"flip": false` if mirrored images
are not what they were, as with digits.
"""

import json
import os
import shutil
import sys
import zlib
from argparse import Namespace
from collections import Counter
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from engine.errors import BadInput, shorten

BUILT_IN = "data/digits"  # the images that come with the project


def train_part(opt: Namespace) -> "ClassFolders":
    """The images to learn from, resized and, with `--flip`, mirrored at random."""
    return ClassFolders(folder(opt.data) / "train", transform(opt, training=True))


def test_part(opt: Namespace, classes: list[str]) -> "ClassFolders":
    """The images to be judged by, which are never changed at random.

    Raises:
        BadInput: Its classes are not those of the training part.
    """
    part = ClassFolders(folder(opt.data) / "test", transform(opt, training=False))
    missing = sorted(set(classes) - set(part.classes))
    unknown = sorted(set(part.classes) - set(classes))
    if missing or unknown:
        raise BadInput(
            f"{part.root}: its class folders must be those of training; "
            + f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    return part


def transform(opt: Namespace, training: bool) -> v2.Transform:
    """From a PIL image to a uint8 tensor (3, S, S), S = `--img-size`.

    To augment, add any transform of torchvision's v2 to the list: each sample has a seed of its
    own, so runs stay exact. The classifier brings the values to the range of its network.
    """
    steps: list[v2.Transform] = [v2.Resize((opt.img_size, opt.img_size))]
    if training and opt.flip:
        steps += [v2.RandomHorizontalFlip()]
    return v2.Compose([*steps, v2.PILToTensor()])


class ClassFolders(ImageFolder):
    """Images in one folder for each class, whose names sorted give the labels 0, 1, ...

    Hidden files and folders (a name that begins with a dot) are not looked at. Other files that
    are no images are left out, and named in a warning.

    Args:
        root: The folder that holds the class folders.
        transform: From a PIL image in RGB to a tensor.

    Returns:
        For an index: a tensor (3, H, W) uint8 and its label, int64.

    Raises:
        BadInput: There is no such folder, no class in it, or no image in one of them.
    """

    def __init__(self, root: Path, transform: v2.Transform) -> None:
        if not root.is_dir():
            raise BadInput(
                f"{root}: no such folder; --data wants a folder that holds train/ and test/"
            )
        self.left_out: list[str] = []
        super().__init__(
            str(root), transform, loader=read_image, is_valid_file=self._is_wanted, allow_empty=True
        )
        if self.left_out:
            names = shorten(self.left_out)
            print(f"warning: {root}: left out, as not images: {names}", file=sys.stderr)
        images: Counter[int] = Counter(self.targets)
        self.counts = {name: images[label] for name, label in self.class_to_idx.items()}
        if empty := [name for name, count in self.counts.items() if count == 0]:
            raise BadInput(
                f"{root}: no image in the class folder{'s' * (len(empty) > 1)} {', '.join(empty)}; "
                f"files that count end in {', '.join(IMG_EXTENSIONS)}"
            )

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        folders = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
        classes = sorted(name for name in folders if not name.startswith("."))
        if not classes:
            raise BadInput(f"{directory}: no class folders; each class is a folder with its images")
        return classes, {name: i for i, name in enumerate(classes)}

    def _is_wanted(self, path: str) -> bool:
        relative = Path(path).relative_to(self.root)
        if any(is_hidden(part) for part in relative.parts):
            return False
        if not is_image(path):
            self.left_out.append(str(relative))
        return is_image(path)

    def fingerprint(self) -> int:
        """A checksum of the list of files: what the order of training depends on."""
        names = "\n".join(Path(path).relative_to(self.root).as_posix() for path, _ in self.samples)
        return zlib.crc32(os.fsencode(names))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        return image, torch.tensor(label)


def read_image(path: str | Path) -> Image.Image:
    """Reads an image of any kind as RGB, upright, transparency on white.

    Raises:
        BadInput: The file is not an image, or damaged.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = ImageOps.exif_transpose(file)  # cameras note which side is up
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255
                image = image.convert("I").point(lambda value: value / 257, "L")
            if image.has_transparency_data:  # else the colour hidden behind it would show
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise BadInput(
            f"{path}: not readable as an image ({error}); replace it or take it away"
        ) from None


class ImageFiles(Dataset):
    """Images without labels, for predictions.

    Args:
        paths: Files, and folders whose images are all taken, those of subfolders included.
        transform: From a PIL image in RGB to a tensor.

    Returns:
        For an index: a tuple of one tensor (3, H, W) uint8; `files` has its path.

    Raises:
        BadInput: A path does not exist, or a folder holds no image.
    """

    def __init__(self, paths: list[str], transform: v2.Transform) -> None:
        self.files: list[Path] = []
        self.transform = transform
        for path in map(Path, paths):
            if not path.exists():
                raise BadInput(f"{path}: no such file or folder")
            found = [path] if path.is_file() else images_below(path)
            if not found:
                raise BadInput(f"{path}: no image in this folder")
            self.files += found

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.transform(read_image(self.files[index])),)


def folder(name: str) -> Path:
    """The folder that `--data` names; the images that come with the project are unpacked first."""
    path = Path(name)
    if path == Path(BUILT_IN) and not path.exists():
        unpack_digits(path)
    return path


def facts(name: str) -> dict:
    """What the dataset.json of `--data` says, if there is one."""
    path = folder(name) / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error}); mend or delete it") from None
    if not isinstance(content, dict) or not isinstance(content.get("flip", True), bool):
        raise BadInput(f"{path}: must be an object whose flip is true or false; mend or delete it")
    return content


def unpack_digits(target: Path) -> None:
    """Cuts data/digits.png into single images: row c holds the digits c, each 8x8 pixels.

    Every fifth image of a class is for testing. The sheet is made of the test part of "Optical
    Recognition of Handwritten Digits" (data/README.md states source and licence).
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with Image.open(Path(__file__).with_name("data") / "digits.png") as sheet:
        for label in range(sheet.height // 8):
            for part in ("train", "test"):
                (partial / part / str(label)).mkdir(parents=True)
            for i in range(sheet.width // 8):
                digit = sheet.crop((8 * i, 8 * label, 8 * i + 8, 8 * label + 8))
                if digit.getbbox():  # the shorter rows end in black
                    part = "test" if i % 5 == 4 else "train"
                    digit.save(partial / part / str(label) / f"{i:03d}.png")
    about = {
        "name": "Optical Recognition of Handwritten Digits",
        "source": "https://doi.org/10.24432/C50P49",
        "licence": "CC BY 4.0",
        "flip": False,
    }
    (partial / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    try:
        partial.rename(target)  # all or nothing, also when two runs start at once
    except OSError:
        shutil.rmtree(partial)


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and in its subfolders, sorted; none that are hidden."""
    return [path for path in files_below(folder) if is_image(path)]


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, also linked ones, sorted; none that are hidden."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(root, name) for name in files if not is_hidden(name)]
    return sorted(found)


def is_image(path: str | Path) -> bool:
    """Whether a file counts as an image, by its name."""
    return not is_hidden(path) and str(path).lower().endswith(IMG_EXTENSIONS)


def is_hidden(path: str | Path) -> bool:
    """Whether a file is what Unix hides, or what Windows puts into folders by itself."""
    name = os.path.basename(path)
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")
