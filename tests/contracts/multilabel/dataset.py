"""Images with any number of labels: DIR/train/NAME.png, and a line NAME,0,1,1 in DIR/train.csv."""

import copy
import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from engine.data.cache import CachedImages
from engine.data.images import SerializedList, flip, read_image

BUILT_IN, CLASSES = "shapes", ("disc", "bar", "frame")


def load_to_judge(path: str, opt: Namespace | None = None) -> Tensor:
    return pil_to_tensor(read_image(path))


def data_dir(name: str) -> Path:
    return Path(name)


def augment(
    opt: Namespace, info: dict[str, Any], random: Generator, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    return flip(images, random), labels


def train_and_val(opt: Namespace) -> tuple["Labelled", "Labelled"]:
    whole = Labelled(Path(opt.data, "train"))
    in_val = torch.arange(len(whole)) % 4 == 0
    return whole.part(~in_val), whole.part(in_val)


def eval_set(opt: Namespace, info: dict[str, Any], split: str) -> "Labelled":
    return Labelled(Path(opt.data, split))


def describe(train_set: "Labelled", val_set: "Labelled", opt: Namespace) -> str:
    return f"data: {opt.data}, {len(train_set)} images to train on"


class Labelled(Dataset):
    def __init__(self, root: Path) -> None:
        with open(root.with_suffix(".csv"), newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        names = SerializedList(name for name, *_ in lines)
        self.images = CachedImages(root, names, load_to_judge, "full")
        self.labels = torch.tensor([[float(value) for value in values] for _, *values in lines])
        self.rows = torch.arange(len(lines))

    def part(self, chosen: Tensor) -> "Labelled":
        part = copy.copy(self)
        part.rows = self.rows[chosen]
        return part

    @property
    def info(self) -> dict[str, Any]:
        counts = self.labels[self.rows].sum(0).int().tolist()
        return {"classes": dict(zip(CLASSES, counts, strict=True))}

    def fingerprint(self) -> str:
        return self.images.fingerprint(self.rows)

    def names(self) -> list[str]:
        return [self.images.files[row] for row in self.rows.tolist()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = int(self.rows[index])
        return self.images[row], self.labels[row]
