"""Degradations, which turn any photographs into pairs: the network learns to undo them.

dataset.py may add others to DEGRADATIONS.
"""

from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from engine.data.stored import Form, to_depth
from engine.errors import BadInput

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness (ITU-R BT.601)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def enlarge(image: Tensor, scale: float, depth: str = "uint8") -> Tensor:
    """Enlarges an image `scale` times, as low_resolution does: (C, H, W) -> (C, H', W')."""
    height, width = image.shape[1:]
    larger = _bicubic(image.float(), (round(height * scale), round(width * scale)))
    return to_depth(larger, depth)


def to_uint8(image: Tensor) -> Tensor:
    """An image with its values rounded, and limited to 0 to 255."""
    return image.round().clamp(0, 255).to(torch.uint8)


def noise(image: Tensor, opt: Namespace) -> Tensor:
    """Adds Gaussian noise with a standard deviation of `--noise`."""
    return image + opt.noise * torch.randn(image.shape)


def grey(image: Tensor, opt: Namespace) -> Tensor:
    """Removes the colours."""
    return _brightness(image).expand(3, -1, -1)


def low_resolution(image: Tensor, opt: Namespace) -> Tensor:
    """Reduces the image to 1 / `--scale` of its size and enlarges it again, both bicubic."""
    height, width = image.shape[1:]
    small = (max(1, round(height / opt.scale)), max(1, round(width / opt.scale)))
    return _bicubic(_bicubic(image, small, antialias=True), (height, width))


def edges(image: Tensor, opt: Namespace) -> Tensor:
    """The edges, dark on white (Sobel operator)."""
    kernel = torch.tensor(SOBEL) / 4
    padded = functional.pad(_brightness(image)[None], (1, 1, 1, 1), mode="replicate")
    slopes = functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    return (255 - slopes.norm(dim=1)).expand(3, -1, -1)


def check_channels(opt: Namespace, form: Form) -> None:
    """Raises BadInput if options need red, green and blue, and images of a form have no such."""
    asked = f"--degrade {opt.degrade}" if opt.degrade in ("grey", "edges") else ""
    if "perceptual" in opt.losses and opt.vgg_weights != "none":
        asked = "--losses perceptual"
    if asked and form.channels != 3:
        raise BadInput(f"{asked}: is for three channels, and {form.of} has {form}; leave it out")


def _bicubic(image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    return functional.interpolate(image[None], size, mode="bicubic", antialias=antialias)[0]


def _brightness(image: Tensor) -> Tensor:
    return (image * torch.tensor(LUMA)[:, None, None]).sum(dim=0, keepdim=True)


# The names for --degrade: each takes and returns float (3, H, W) in [0, 255].
DEGRADATIONS: dict[str, Callable[[Tensor, Namespace], Tensor]] = {
    "noise": noise,
    "grey": grey,
    "low-resolution": low_resolution,
    "edges": edges,
}
