"""What a sample is: an image in a folder named after its class.

    DIR/train/CLASS/any_name.jpg
    DIR/val/CLASS/any_name.jpg      optional; without it a share of train/ is set aside
    DIR/test/CLASS/any_name.jpg     read by test.py alone

A file DIR/dataset.json may name the source of the images, and `"flip": false` in it turns random
flips off, for digits and the like.
"""

import copy
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.transforms import v2

from engine.data.cache import CachedImages
from engine.data.files import list_images, split_by_hash, warn_shared, warn_unused
from engine.data.images import flip, image_size, read_image
from engine.errors import BadInput
from task.augmentation import chosen_transforms, eval_crop, mix, stored_side, train_crop
from task.classes import check_classes, check_divisible, check_one_class, list_classes
from task.preprocessing import describe_preprocessing, is_whole, resized
from tools.digits import unpack_digits

BUILT_IN = "data/digits"  # the images that come with the project

# An image takes three steps: `load` always gives the same, so its result is kept in the cache;
# `random_transforms` change single images; `augment` changes whole batches on the device. Each
# sample and each batch has a seed of its own, so runs stay exact. Crops are cut after `load`.


def load(path: str | Path, opt: Namespace) -> Tensor:
    """Reads an image and resizes it: uint8 (3, S, S), S = `--img-size`.

    With `--resize crop` it keeps its aspect ratio: (3, H, W), large enough, but never enlarged.
    The cache is made again when this file changes. An option that is used here has to be in the
    name of the cache too: see `recipe`.
    """
    if is_whole(opt):
        return v2.functional.pil_to_tensor(resized(read_image(path), opt))
    side = stored_side(opt) if opt.resize == "crop" else opt.img_size
    image = read_image(path, (side, side))
    if opt.resize == "squash":
        image = v2.functional.resize(image, [side, side])
    elif min(image.size) > side:
        image = v2.functional.resize(image, [side])  # the short side
    return v2.functional.pil_to_tensor(image)


def recipe(opt: Namespace) -> str:
    """The options that the result of `load` depends on, as a part of a file name."""
    if opt.resize == "crop":
        return f"crop{stored_side(opt)}px"
    exact = [opt.resize, *opt.preprocess[:2]] if is_whole(opt) else []
    return "-".join([f"{opt.img_size}px", *exact])


def load_eval(path: str | Path, opt: Namespace) -> Tensor:
    """Reads an image as validation and test see it: uint8 (3, V, V), V = `--val-img-size` or S."""
    image = load(path, opt)
    for transform in eval_crop(opt):
        image = transform(image)
    return image


def random_transforms(opt: Namespace) -> list[v2.Transform]:
    """The random transforms of each training image, of torchvision.transforms.v2.

    Each takes and returns an image, uint8 (3, S, S).
    """
    return chosen_transforms(opt)


def augment(
    opt: Namespace, info: dict[str, Any], random: Generator, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The random changes of a whole training batch, on the device, where they are cheap.

    Args:
        opt: The options.
        info: That of the data set and of the model.
        random: The generator to draw from, on the device.
        images: uint8 (N, 3, S, S).
        labels: int64 (N,).

    Returns:
        The same; of mixed images float32 in [0, 255], and the share of each class, float32 (N, K).
    """
    if opt.flip:
        images = flip(images, random)
    if opt.shift:
        images = shift(images, opt.shift, random)
    if opt.mixup or opt.cutmix:
        images, labels = mix(opt, len(info["classes"]), random, images, labels)
    return images, labels


def shift(images: Tensor, most: int, random: Generator) -> Tensor:
    """Moves each image (N, C, H, W) by up to `most` pixels in both directions, on black."""
    n, _, height, width = images.shape
    padded = functional.pad(images, (most, most, most, most))
    moves = torch.randint(2 * most + 1, (2, n, 1, 1), generator=random, device=images.device)
    rows = moves[0] + torch.arange(height, device=images.device)[:, None]
    columns = moves[1] + torch.arange(width, device=images.device)
    image = torch.arange(n, device=images.device)[:, None, None]
    # Indexed with the channels last, which is how they lie in memory.
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)


def train_and_val(opt: Namespace) -> tuple[Any, Any]:  # of ClassFolders, or a data set of your own
    """The images to train on, and those to validate on: val/, or else a share of train/.

    Raises:
        BadInput: As ClassFolders; or the classes differ, or a class cannot be divided.
    """
    root = data_dir(opt.data)
    train_set = ClassFolders(root / "train", opt)
    splits = [train_set.found]
    if (root / "val").is_dir():
        val_set = ClassFolders(root / "val", opt, train_set.classes)
        splits.append(val_set.found)
        warn_shared(*splits)
    else:
        train_set, val_set = train_set.split(opt.val_share)
    warn_unused(root, *splits)
    train_set.transforms = [*train_crop(opt), *random_transforms(opt)]
    if opt.sample == "balanced":
        train_set.strata = train_set.labels
    check_transforms(train_set, opt)
    return train_set, val_set


def eval_set(opt: Namespace, info: dict[str, Any], split: str) -> Any:
    """The images of a split (test, val or train), never changed at random.

    Raises:
        BadInput: As ClassFolders; or the classes are not those of `info`, that of the model.
    """
    if split == "test":
        root = data_dir(opt.data)
        chosen = ClassFolders(root / "test", opt, list(info["classes"]))
        warn_unused(root, chosen.found)
        for other in ("train", "val"):
            warn_shared(list_images(root / other), chosen.found)
        return chosen
    chosen = train_and_val(opt)[split == "val"]
    chosen.transforms = eval_crop(opt)
    check_classes(chosen.root, chosen.classes, list(info["classes"]))
    return chosen


class ClassFolders(Dataset):
    """Images in one folder for each class. The names of the folders, sorted, give the labels.

    Hidden files and folders (a name that begins with a dot) are ignored. `found` tells what else
    lies there, and is not used.

    Args:
        root: The folder that holds the class folders.
        opt: The options.
        classes: Those of training, some of which may have no images here.

    Returns:
        For an index: a tensor (3, S, S) uint8, or (3, V, V) to judge by, and its label, int64.

    Raises:
        BadInput: As list_classes and check_one_class of task.classes.
    """

    def __init__(self, root: Path, opt: Namespace, classes: list[str] | None = None) -> None:
        self.root = root
        self.transforms = eval_crop(opt)  # those of training images are others
        # The options on which validation depends: when it changes, the best value is forgotten.
        how = "centred" if opt.resize == "center" else "squashed"
        self.view = f"{how} to {opt.img_size} pixels"
        if opt.resize == "crop":
            self.view = f"cropped to {opt.val_img_size} of {stored_side(opt)} pixels"
        self.view = ", ".join([self.view, *(opt.preprocess or [])])
        self.strata: Tensor | None = None  # the labels, if each class is drawn equally often
        by_class, found = list_classes(root, classes)
        check_one_class(found)
        self.found = found.for_workers()
        self.classes = list(by_class)
        counts = [len(paths) for paths in by_class.values()]
        self.images = CachedImages(
            root,
            [path for paths in by_class.values() for path in paths],
            decode=partial(load, opt=opt),
            recipe=recipe(opt),
        )
        self.rows = torch.arange(sum(counts))  # of `images`
        self.labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def split(self, share: float) -> tuple["ClassFolders", "ClassFolders"]:
        """Two parts of these images; the second gets about `share` of each class.

        The hash of a file's path decides, so new files move no old one, unless a class would have
        no image in one of the parts.

        Raises:
            BadInput: A class has only one image.
        """
        check_divisible(self.root, self.info["classes"])
        in_val = torch.tensor(split_by_hash(self.names(), self.labels.tolist(), share))
        return self._select(~in_val), self._select(in_val)

    def _select(self, chosen: Tensor) -> "ClassFolders":
        part = copy.copy(self)  # the images and their cache are shared
        part.rows, part.labels = self.rows[chosen], self.labels[chosen]
        return part

    @property
    def info(self) -> dict[str, Any]:
        """What checkpoints keep: "classes", with the number of images of each."""
        counts = torch.bincount(self.labels.cpu(), minlength=len(self.classes)).tolist()
        return {"classes": dict(zip(self.classes, counts, strict=True))}

    def names(self) -> list[str]:
        """The path of each sample, relative to `root`."""
        return [self.images.files[row] for row in self.rows.tolist()]

    def fingerprint(self) -> str:
        """A checksum of the list of samples, which the order of training depends on."""
        return self.images.fingerprint(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[int(self.rows[index])]
        for transform in self.transforms:
            image = transform(image)
        return image, self.labels[index]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor] | None:
        """The samples of a batch at once; None if they have to be made one by one."""
        if self.transforms:
            return None
        indices = indices.to(self.rows.device)
        stacked = self.images.stack(self.rows.index_select(0, indices))
        return None if stacked is None else (stacked, self.labels.index_select(0, indices))

    def to(self, device: torch.device) -> None:
        """Moves what `batch` needs besides the images to their device."""
        self.rows, self.labels = self.rows.to(device), self.labels.to(device)


def check_transforms(train_set: ClassFolders, opt: Namespace) -> None:
    """Raises BadInput if the random transforms make something else of the first image."""
    image = train_set[0][0] if train_set.transforms else None
    shape = (3, opt.img_size, opt.img_size)
    if image is not None and (image.dtype != torch.uint8 or image.shape != shape):
        raise BadInput(
            f"random_transforms in dataset.py: return {image.dtype} {tuple(image.shape)}, and have "
            f"to return torch.uint8 {shape}"
        )


def describe(train_set: Any, val_set: Any, opt: Namespace) -> str:
    """What train.py prints about the data: counts, and the size of the images on the disk."""
    counts = f"{len(train_set):,} images to train on, {len(val_set):,} to validate on"
    classes = train_set.info["classes"]
    text = f"data: {opt.data}, {len(classes)} classes, {counts}"
    if not isinstance(train_set, ClassFolders):
        return text
    width, height = image_size(train_set.root / train_set.images.files[int(train_set.rows[0])])
    if train_set.strata is not None:
        rare, times = min(classes, key=classes.__getitem__), len(train_set) / len(classes)
        text += (
            f"\ndraws: about {times:,.0f} of each class in an epoch, each image of {rare} about "
            f"{times / classes[rare]:,.1f} times (--sample {opt.sample})"
        )
    how = "enlarged" if max(width, height) < opt.img_size else "resized"
    how = "cropped" if opt.resize == "crop" else how
    text += f"\nimages: {width}x{height} pixels (the first), {how} to {opt.img_size}x{opt.img_size}"
    text += describe_preprocessing(opt)
    larger = min(width, height, 224)  # more is rarely worth its time
    if larger >= 2 * opt.img_size:
        return f"{text};\n  most of their detail is lost; --img-size {larger} keeps more"
    if opt.img_size > 4 * max(width, height):
        return f"{text};\n  a smaller --img-size shows as much, and is faster"
    return text


def data_dir(name: str) -> Path:
    """The folder for `--data`. The images that come with the project are unpacked if necessary."""
    if Path(name) != Path(BUILT_IN) or Path(name).exists():
        return Path(name)
    built_in = Path(__file__).parent / BUILT_IN
    if not built_in.exists():
        unpack_digits(built_in)
    return built_in.relative_to(Path.cwd()) if built_in.is_relative_to(Path.cwd()) else built_in
