"""Augmentation by torchvision.transforms.v2: its options, crops, changes of images, mixed batches.

The transforms draw from torch's global generator on the CPU. It is seeded for each sample (see
engine/data/sampler.py) and in `mix`, so runs stay exact.
"""

from argparse import BooleanOptionalAction, Namespace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torchvision.transforms import v2

from engine.arguments import number
from engine.data.sampler import seed_all
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


def check_eval_size(opt: Namespace, network: nn.Module) -> None:
    """Raises BadInput if a network cannot take images of `--val-img-size`."""
    if opt.resize != "crop" or opt.val_img_size == opt.img_size:
        return
    if refusal := refuses(network, opt.val_img_size):
        raise BadInput(
            f"--val-img-size {opt.val_img_size}: not for {opt.network} ({refusal}); leave it out"
        )


def chosen_transforms(opt: Namespace) -> list[v2.Transform]:
    """The random transforms that the options ask for, each from uint8 (3, S, S) to the same."""
    chosen: list[v2.Transform] = []
    if opt.trivial_augment:
        chosen.append(v2.TrivialAugmentWide())
    if opt.color_jitter:
        chosen.append(v2.ColorJitter(*[opt.color_jitter] * 3))
    if opt.erasing:
        chosen.append(v2.RandomErasing(opt.erasing, value=GREY))
    return chosen


def mix(
    opt: Namespace, classes: int, random: Generator, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixes each image of a batch with the one before it: `--mixup`, `--cutmix`, one of them not 0.

    The seed of `random` decides. Images are uint8 (N, 3, S, S), labels int64 (N,); returns float32
    (N, 3, S, S) in [0, 255], and the share of each class, float32 (N, K).
    """
    kinds = ((v2.MixUp, opt.mixup), (v2.CutMix, opt.cutmix))
    mixing = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    # They draw on the CPU, wherever the batch is, so a GPU is not waited for. The seed alone would
    # give the very numbers that have chosen the images to mirror.
    seed_all(torch.device("cpu"), random.initial_seed(), "mix")
    return v2.RandomChoice(mixing)(images.float(), labels)
