"""Images and their masks: DIR/train/images/NAME.png and DIR/train/masks/NAME.png."""

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from engine.data.cache import CachedImages
from engine.data.images import flip, read_image

BUILT_IN, CLASSES = "shapes", ("background", "disc", "bar")


def load(path: str) -> Tensor:
    return pil_to_tensor(read_image(path))


def load_mask(path: str) -> Tensor:
    return pil_to_tensor(Image.open(path))


def load_eval(path: str, opt: Namespace) -> Tensor:
    return load(path)


def data_dir(name: str) -> Path:
    return Path(name)


def augment(
    opt: Namespace, info: dict[str, Any], random: Generator, images: Tensor, masks: Tensor
) -> tuple[Tensor, ...]:
    return flip(torch.cat([images, masks], dim=1), random).split([3, 1], dim=1)


def train_and_val(opt: Namespace) -> tuple["Masked", "Masked"]:
    whole = Masked(Path(opt.data, "train"))
    in_val = torch.arange(len(whole)) % 4 == 0
    return whole.part(~in_val), whole.part(in_val)


def eval_set(opt: Namespace, info: dict[str, Any], split: str) -> "Masked":
    return Masked(Path(opt.data, split))


def describe(train_set: "Masked", val_set: "Masked", opt: Namespace) -> str:
    return f"data: {opt.data}, {len(train_set)} images to train on"


class Masked(Dataset):
    def __init__(self, root: Path) -> None:
        names = sorted(path.name for path in (root / "images").iterdir())
        self.images = [
            CachedImages(root / "images", names, load, "full"),
            CachedImages(root / "masks", names, load_mask, "full", kind="index"),
        ]
        self.rows = torch.arange(len(names))

    def part(self, chosen: Tensor) -> "Masked":
        part = copy.copy(self)
        part.rows = self.rows[chosen]
        return part

    @property
    def info(self) -> dict[str, Any]:
        pixels, _ = self.images[1].totals(self.rows)
        return {"classes": list(CLASSES), "pixels": pixels[: len(CLASSES)].tolist()}

    def fingerprint(self) -> str:
        return self.images[0].fingerprint(self.rows)

    def names(self) -> list[str]:
        return [self.images[0].files[row] for row in self.rows.tolist()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(images[int(self.rows[index])] for images in self.images)
