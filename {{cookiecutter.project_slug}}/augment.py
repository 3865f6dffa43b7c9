"""Random changes of whole batches, made on the device; each image of a batch is changed anew.

All take images (N, C, H, W) of any type and return the same shape and type. To change several
images alike, such as the two of a pair, join their channels first.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional


def flip(images: Tensor, random: Generator) -> Tensor:
    """Mirrors about half of the images, left to right."""
    n, device = len(images), images.device
    mirrored = torch.rand(n, generator=random, device=device) < 0.5
    # To pick whole images, with the channels last as they lie in memory, is quicker than to pick
    # number by number.
    whole = images.permute(0, 2, 3, 1)
    either = torch.cat([whole, whole.flip(2)])
    chosen = torch.arange(n, device=device) + n * mirrored
    return either.index_select(0, chosen).permute(0, 3, 1, 2)


def shift(images: Tensor, most: int, random: Generator) -> Tensor:
    """Moves each image by up to `most` pixels in both directions; black comes in at the borders."""
    n, _, height, width = images.shape
    padded = functional.pad(images, (most, most, most, most))
    moves = torch.randint(2 * most + 1, (2, n, 1, 1), generator=random, device=images.device)
    rows = moves[0] + torch.arange(height, device=images.device)[:, None]
    columns = moves[1] + torch.arange(width, device=images.device)
    image = torch.arange(n, device=images.device)[:, None, None]
    # Indexed with the channels last, which is how they lie in memory.
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
