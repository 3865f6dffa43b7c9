"""How an image becomes what a network was trained to see: `--resize` and `--preprocess`.

`--preprocess` is a list of NAME=VALUE: crop (the side of what is cut out, as a share of the resized
image), interpolation, mean and std (of red, green and blue in [0, 1]). It is empty for networks and
runs that bring nothing of the kind; then images are resized bilinearly, from JPEGs that may be
decoded at a part of their size.
"""

import math
from argparse import ArgumentTypeError, Namespace
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from engine import terminal
from engine.errors import BadInput
from task.augmentation import stored_side

RESIZE = ("squash", "crop", "center")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CROP = 0.875  # as 224 of 256
SMALL, LARGE = 32, 224  # pixels: of networks of this project, and of untrained ones of a library
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Preset:
    """What the weights of a network of a library were trained with."""

    size: int  # height and width, in pixels
    resize: str  # center or squash
    crop: float
    interpolation: str
    mean: Colour  # of values in [0, 1]
    std: Colour


# fmt: off
def add_preprocessing_options(group: Any) -> None:
    """Adds the options of this file to a group of a parser."""
    add = group.add_argument
    add("--resize", choices=RESIZE,
        help="squash: to S x S, whatever the aspect ratio; crop: a random part, or the centre; "
        "center: the short side to S / crop, of which the middle S x S (default: as the network's "
        "trained weights were made if it is one of a library, else squash)")
    add("--preprocess", nargs="+", type=part, metavar="NAME=VALUE",
        help="crop=0.875, interpolation=bicubic, mean=0.5,0.5,0.5 and std=0.5,0.5,0.5, or some of "
        "them, in the place of those of the network")
# fmt: on


def part(text: str) -> str:
    """A type for add_argument: one NAME=VALUE of `--preprocess`, its numbers as Python has them."""
    name, _, value = text.partition("=")
    numbers: list[float] = []
    with suppress(ValueError):
        numbers = [float(number) for number in value.split(",")]
    if name == "interpolation" and value in INTERPOLATIONS:
        return text
    if name == "crop" and len(numbers) == 1 and 0.1 <= numbers[0] <= 1:
        return f"crop={numbers[0]}"
    least = {"mean": 0.0, "std": 1e-3}.get(name)
    if least is not None and len(numbers) == 3 and all(least <= x <= 1 for x in numbers):
        return f"{name}={','.join(map(str, numbers))}"
    raise ArgumentTypeError(
        f"{text!r} is none of crop=0.1 to 1, interpolation={'|'.join(INTERPOLATIONS)}, mean=R,G,B "
        "and std=R,G,B of values in [0, 1]"
    )


def settings(opt: Namespace) -> dict[str, Any]:
    """What `--preprocess` says: crop, interpolation, mean and std, as far as it does."""
    said: dict[str, Any] = dict(text.split("=") for text in opt.preprocess or [])
    for name in said.keys() & {"mean", "std"}:
        said[name] = tuple(map(float, said[name].split(",")))
    return said | ({"crop": float(said["crop"])} if "crop" in said else {})


def complete_preprocessing(opt: Namespace, preset: Preset | None, always: bool) -> None:
    """Fills in `--img-size`, `--resize` and `--preprocess`, from the preset of the network if any.

    Args:
        opt: The options.
        preset: That of the network; None for networks of this project.
        always: Its size, mean and std hold without its weights, too.

    Raises:
        BadInput: Options contradict each other.
    """
    given, trained = settings(opt), bool(preset and (opt.pretrained or opt.weights))
    usual = preset.size if preset and (trained or always) else LARGE if preset else SMALL
    opt.img_size = opt.img_size or usual
    opt.resize = opt.resize or (preset.resize if preset and trained else "squash")
    own = bool(preset and opt.resize == preset.resize)
    named = [name for name in ("crop", "interpolation") if name in given]
    if opt.resize == "crop" and named:
        raise BadInput(f"--preprocess {named[0]}: not with --resize crop; add --resize center")
    chosen: dict[str, Any] = {}
    if opt.resize == "center" or (own and trained) or named:
        chosen["crop"] = preset.crop if preset and own else CROP if opt.resize == "center" else 1.0
        chosen["interpolation"] = preset.interpolation if preset else "bilinear"
    if preset and (trained or always) and opt.images != "stored":  # else those of the data
        chosen |= {"mean": preset.mean, "std": preset.std}
    for name in chosen.keys() & given.keys() if trained else ():  # perhaps of another's config.txt
        if chosen[name] != given[name]:
            told = f"its weights were made with {chosen[name]}"
            terminal.warn(f"--preprocess {name}={given[name]}: {opt.network}: {told}")
    opt.preprocess = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in (chosen | given).items()
    ] or None


def is_whole(opt: Namespace) -> bool:
    """Whether images are resized by `resized`, from files decoded at their full size."""
    return opt.resize != "crop" and "crop" in settings(opt)


def resized(image: Image.Image, opt: Namespace) -> Image.Image:
    """An image as S x S pixels, S = `--img-size`, bit for bit as torchvision and timm make it.

    Pillow resizes the short side (squash: both) to floor(S / crop), of which the middle is taken.
    """
    how = settings(opt)
    side = math.floor(opt.img_size / how["crop"])
    target = [side, side] if opt.resize == "squash" else [side]
    mode = InterpolationMode(how["interpolation"])
    image = v2.functional.resize(image, target, mode)
    return v2.functional.center_crop(image, [opt.img_size, opt.img_size])


def resize(image: Image.Image, opt: Namespace) -> Image.Image:
    """An image in the size that `load` of dataset.py gives it."""
    if is_whole(opt):
        return resized(image, opt)
    if opt.resize == "squash":
        return v2.functional.resize(image, [opt.img_size, opt.img_size])
    side = stored_side(opt)
    return v2.functional.resize(image, [side]) if min(image.size) > side else image  # the short one


def describe_preprocessing(opt: Namespace, width: int, height: int, seen: str = "") -> str:
    """The lines about it that train.py prints, each after a line's end.

    Args:
        opt: The options.
        width: Of the first image.
        height: Likewise.
        seen: What else is known of it.
    """
    how = "enlarged" if max(width, height) < opt.img_size else "resized"
    how = "cropped" if opt.resize == "crop" else how
    text = f"\nimages: {width}x{height} pixels (the first){seen}, {how} to "
    text += f"{opt.img_size}x{opt.img_size}"
    text += f"\npreprocessing: {opt.resize}, {', '.join(opt.preprocess)}" if opt.preprocess else ""
    larger = min(width, height, 224)  # more is rarely worth its time
    if larger >= 2 * opt.img_size:
        return f"{text};\n  most of their detail is lost; --img-size {larger} keeps more"
    if opt.img_size > 4 * max(width, height):
        return f"{text};\n  a smaller --img-size shows as much, and is faster"
    return text
