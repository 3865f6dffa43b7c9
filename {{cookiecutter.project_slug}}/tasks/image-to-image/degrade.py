"""What can be done to a photograph for a network to undo: any photographs become pairs at once.

A new one is a function here, and its name in DEGRADATIONS.
"""

from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

GREY = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def degrade(image: Tensor, name: str, opt: Namespace) -> Tensor:
    """Degrades an image; what is random comes from torch's generator, which is seeded per sample.

    Args:
        image: uint8 (3, H, W).
        name: One of DEGRADATIONS.
        opt: The options, for how much of it.

    Returns:
        uint8 of the same shape: rounded, and cut off at 0 and 255.
    """
    changed = DEGRADATIONS[name](image.float(), opt)
    return changed.round().clamp(0, 255).to(torch.uint8)


def noise(image: Tensor, opt: Namespace) -> Tensor:
    """Adds to each value a number from N(0, `--noise` squared)."""
    return image + opt.noise * torch.randn(image.shape)


def grey(image: Tensor, opt: Namespace) -> Tensor:
    """Takes away the colours."""
    return _brightness(image).expand(3, -1, -1)


def low_resolution(image: Tensor, opt: Namespace) -> Tensor:
    """Reduces the image to 1 / `--scale` of its size and enlarges it again, both bicubic."""
    height, width = image.shape[1:]
    small = (max(1, round(height / opt.scale)), max(1, round(width / opt.scale)))
    reduced = functional.interpolate(image[None], small, mode="bicubic", antialias=True)
    return functional.interpolate(reduced, (height, width), mode="bicubic")[0]


def edges(image: Tensor, opt: Namespace) -> Tensor:
    """Draws where the brightness changes, dark on white (Sobel's operator)."""
    kernel = torch.tensor(SOBEL) / 4
    padded = functional.pad(_brightness(image)[None], (1, 1, 1, 1), mode="replicate")
    slopes = functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    return (255 - slopes.norm(dim=1)).expand(3, -1, -1)


def _brightness(image: Tensor) -> Tensor:
    return (image * torch.tensor(GREY)[:, None, None]).sum(dim=0, keepdim=True)


# What --degrade may name: each takes and returns float (3, H, W) in [0, 255].
DEGRADATIONS: dict[str, Callable[[Tensor, Namespace], Tensor]] = {
    "noise": noise,
    "grey": grey,
    "low-resolution": low_resolution,
    "edges": edges,
}
