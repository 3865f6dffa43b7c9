"""Augmentation by torchvision.transforms.v2: its options, crops, changes of images, mixed batches.

The transforms draw from torch's global generator on the CPU. It is seeded for each sample (see
engine/data/sampler.py) and in `mix`, so runs stay exact.
"""

import argparse
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from engine.arguments import number
from engine.data.features import PLAIN, Views
from engine.data.sampler import seed_all
from engine.data.stored import RGB, Form
from engine.errors import BadInput
from engine.modules import refuses

MARGIN = 8 / 7  # of the short side of an image over that of its centre, as 256 / 224
CROP_MIN = 0.35  # a smaller share suits runs of hundreds of epochs
GREY = 127  # about 0 after the normalisation


# fmt: off
def add_augmentation_options(group: Any) -> None:
    """Adds the options of this file to a group of a parser."""
    add = group.add_argument
    add("--crop-min", type=number(float, 0.01, 1), metavar="SHARE",
        help=f"least area of a random crop, as a share of the image (default: {CROP_MIN})")
    add("--val-img-size", type=number(int, 1), metavar="V",
        help="with --resize crop, judge by crops of V x V (default: --img-size)")
    add("--trivial-augment", action=BooleanOptionalAction, default=False,
        help="change each training image by one random operation of TrivialAugmentWide")
    add("--color-jitter", type=number(float, 0, 1), default=0.0, metavar="STRENGTH",
        help="change brightness, contrast and saturation by a factor of up to 1 +- STRENGTH")
    add("--erasing", type=number(float, 0, 1), default=0.0, metavar="P",
        help="probability of a grey rectangle in a training image")
    add("--mixup", type=number(float, 0), default=0.0, metavar="ALPHA",
        help="blend pairs of training images, by a share from Beta(ALPHA, ALPHA)")
    add("--cutmix", type=number(float, 0), default=0.0, metavar="ALPHA",
        help="paste a part of another training image; with --mixup, one of both for each batch")
    add("--views", type=number(int, 0), metavar="K",
        help="with --freeze, keep the features of K random versions of each training image, 0 for "
        "none (default: those of the image, and of its mirror image with --flip)")
    add("--no-features", dest="views", action="store_const", const=0, default=argparse.SUPPRESS,
        help="as --views 0: with --freeze too, compute the whole network in each epoch")
# fmt: on


def complete_augmentation(opt: Namespace) -> None:
    """Fills in the defaults that depend on other options.

    Raises:
        BadInput: Options contradict each other.
    """
    if opt.resize == "crop":
        opt.crop_min = CROP_MIN if opt.crop_min is None else opt.crop_min
        opt.val_img_size = opt.val_img_size or opt.img_size
    for name in ("crop_min", "val_img_size"):
        if opt.resize != "crop" and (value := getattr(opt, name)) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise BadInput(f"{flag} {value}: images are not cropped at random; add --resize crop")
    for name in ("mixup", "cutmix"):
        if getattr(opt, name) and opt.batch_size == 1:
            raise BadInput(f"--{name}: one image cannot be mixed; use --batch-size 2 or more")


def stored_views(opt: Namespace, augment: Callable[..., Any]) -> Views | str:
    """The versions of an image whose features `--freeze` keeps; or why they cannot be kept.

    Those that are only mirrored are two. Of other random changes `--views` is how many are kept.

    Args:
        opt: The options.
        augment: The random changes of a batch, (info, random, images, labels) -> the same, unmixed.
    """
    endless = {
        f"--crop-min {opt.crop_min}": opt.resize == "crop",
        f"--shift {opt.shift}": opt.shift,
        "--trivial-augment": opt.trivial_augment,
        f"--color-jitter {opt.color_jitter}": opt.color_jitter,
        f"--erasing {opt.erasing}": opt.erasing,
    }
    found = [name for name, on in endless.items() if on]
    if opt.cutmix:
        return "--cutmix pastes parts of images, which features do not have"
    if found and not opt.views:
        return f"{found[0]} changes images at random (--views K keeps K versions of each)"
    mixed = "; --mixup blends features" if opt.mixup else ""
    if opt.views:
        how = ", ".join([*found, *(["--flip"] if opt.flip else [])]) or "all alike"
        text = f"in {opt.views} random versions ({how}){mixed}"
        return Views(text, opt.views, partial(changed, augment))
    if not opt.flip:
        return Views(f"plain{mixed}", 1, PLAIN.make, augment)
    return Views(f"plain and mirrored{mixed}", 2, mirrored, augment)


# Functions of a module, since worker processes may get the data set, and its views, by pickle.
def mirrored(info: Any, random: Generator, number: int, *batch: Tensor) -> Tensor:
    """Version 0 or 1 of images (N, C, H, W): plain or mirrored, left to right."""
    return batch[0].flip(3) if number else batch[0]


def changed(
    augment: Callable[..., Any], info: Any, random: Generator, number: int, *batch: Tensor
) -> Tensor:
    """A random version of images, by the random changes of a batch."""
    return augment(info, random, *batch)[0]


def stored_side(opt: Namespace) -> int:
    """The short side that images are stored with for `--resize crop`, in pixels."""
    return round(max(opt.img_size, opt.val_img_size) * MARGIN)


def train_crop(opt: Namespace) -> list[v2.Transform]:
    """The transforms of `--resize crop` for training: a random part, as uint8 (3, S, S)."""
    if opt.resize != "crop":
        return []
    return [v2.RandomResizedCrop(opt.img_size, scale=(opt.crop_min, 1.0), antialias=True)]


def eval_crop(opt: Namespace) -> list[v2.Transform]:
    """The transforms of `--resize crop` for judging: the centre, as uint8 (3, V, V)."""
    if opt.resize != "crop":
        return []
    size = opt.val_img_size
    return [v2.Resize(round(size * MARGIN), antialias=True), v2.CenterCrop(size)]


def check_eval_size(opt: Namespace, network: nn.Module, channels: int = 3) -> None:
    """Raises BadInput if a network cannot take images of `--val-img-size`."""
    if opt.resize != "crop" or opt.val_img_size == opt.img_size:
        return
    if refusal := refuses(network, opt.val_img_size, channels):
        raise BadInput(
            f"--val-img-size {opt.val_img_size}: not for {opt.network} ({refusal}); leave it out"
        )


def chosen_transforms(opt: Namespace) -> list[v2.Transform]:
    """The random transforms that the options ask for, each from (C, S, S) to the same.

    Images are uint8, or with `--images stored` also float32.
    """
    chosen: list[v2.Transform] = []
    if opt.trivial_augment:
        chosen.append(v2.TrivialAugmentWide())
    if opt.color_jitter:
        chosen.append(v2.ColorJitter(*[opt.color_jitter] * 3))
    if opt.erasing:
        plain = v2.RandomErasing(opt.erasing, value=GREY)
        chosen.append(EraseByMean(opt.erasing) if opt.images == "stored" else plain)
    return chosen


class EraseByMean(v2.Transform):
    """RandomErasing whose rectangle has the mean of each channel of the image, whatever its unit.

    Args:
        p: The probability of a rectangle.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        return v2.RandomErasing(self.p, value=image.float().mean(dim=(1, 2)).tolist())(image)


def check_colours(opt: Namespace, form: Form | None) -> None:
    """Raises BadInput if options change colours, and images of a form have no such."""
    if form is None or form.is_rgb:
        return
    flags = {"--trivial-augment": opt.trivial_augment, "--color-jitter": opt.color_jitter}
    if asked := [flag for flag, value in flags.items() if value]:
        raise BadInput(
            f"{asked[0]}: changes the colours of RGB of 8 bits, and {form.of} has {form}; leave it "
            "out"
        )


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


def check_transforms(train_set: Any, opt: Namespace) -> None:
    """Raises BadInput if the random transforms make something else of the first image."""
    image = train_set[0][0] if train_set.transforms else None
    form = train_set.form or RGB
    shape = (form.channels, opt.img_size, opt.img_size)
    if image is not None and (image.dtype != form.dtype or image.shape != shape):
        raise BadInput(
            f"random_transforms in dataset.py: return {image.dtype} {tuple(image.shape)}, and have "
            f"to return {form.dtype} {shape}"
        )


def mix(
    opt: Namespace, classes: int, random: Generator, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixes each image of a batch with the one before it: `--mixup`, `--cutmix`, one of them not 0.

    The seed of `random` decides. Images are (N, C, S, S), labels int64 (N,); returns float32
    (N, C, S, S) in the same unit, and the share of each class, float32 (N, K). Features,
    (N, D) of any float type, take the place of images for mixup.
    """
    kinds = ((v2.MixUp, opt.mixup), (v2.CutMix, opt.cutmix))
    mixing = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    # They draw on the CPU, wherever the batch is, so a GPU is not waited for. The seed alone would
    # give the very numbers that have chosen the images to mirror.
    seed_all(torch.device("cpu"), random.initial_seed(), "mix")
    shape = images.shape if images.dim() == 4 else (*images.shape, 1, 1)
    mixed, shares = v2.RandomChoice(mixing)(images.float().reshape(shape), labels)
    return mixed.reshape(images.shape), shares
