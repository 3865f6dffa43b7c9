"""Large images by overlapping tiles, blended without seams."""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.arguments import Parser, number
from engine.errors import BadInput

ALIGN = 32  # tiles begin at multiples of this: a generator that halves the size 5 times fits
BLEND = 8  # pixels over which two neighbouring tiles are blended


def apply_in_tiles(
    translate: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int
) -> Tensor:
    """Applies `translate` to an image tile by tile; the memory needed is that of one tile.

    A tile is wrong near its own borders, where `translate` did not see the pixels beyond. So only
    the middle of an overlap is blended, and the rest is taken from the tile whose border is
    farther. If the output at a pixel depends on pixels at most `(overlap - 8) / 2` away, the
    result is that of the whole image. For a generator without norm and downsampling these are
    `6 + 2 * blocks`; with `--unshuffle 2`, `5 + 4 * blocks`.

    Args:
        translate: uint8 (1, 3, H, W) -> the same.
        image: uint8 (3, H, W).
        tile: Height and width of a tile; at least three times `overlap`, and both multiples of
            ALIGN.
        overlap: Pixels that neighbours share.

    Returns:
        uint8 (3, H, W), on the device of the image.
    """
    _, height, width = image.shape
    if height <= tile and width <= tile:
        return translate(image[None])[0]
    total = torch.zeros(image.shape, device=image.device)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            part = image[:, top : top + tile, left : left + tile]
            down = ramp(top, part.shape[1], height, overlap).to(image.device)
            across = ramp(left, part.shape[2], width, overlap).to(image.device)
            weighted = translate(part[None])[0] * down[:, None] * across
            total[:, top : top + tile, left : left + tile] += weighted
    return total.round().to(torch.uint8)


def starts(size: int, tile: int, overlap: int) -> range:
    """The first pixel of each tile along one side of the image."""
    return range(0, max(1, size - overlap), tile - overlap)


def ramp(start: int, length: int, size: int, overlap: int) -> Tensor:
    """The weight of each pixel of a tile along one side; over all tiles these add up to 1."""
    weights = torch.ones(length)
    border = (overlap - BLEND) // 2
    rising = (torch.arange(overlap) - border + 0.5).div(BLEND).clamp(0, 1)
    if start > 0:
        weights[:overlap] = rising
    if start + length < size:
        weights[-overlap:] = 1 - rising
    return weights


def add_tile_options(parser: Parser) -> None:
    """Adds the options for `apply_in_tiles`."""
    add = parser.add_argument
    add("--tile", type=number(int, ALIGN), default=768, help="size of the tiles of larger images")
    add("--overlap", type=number(int, ALIGN), default=64, help="pixels that two tiles share")


def check_tiles(tile: int, overlap: int) -> None:
    """Raises BadInput unless the tiles fit together."""
    if tile % ALIGN or overlap % ALIGN or tile < 3 * overlap:
        raise BadInput(
            f"--tile {tile} --overlap {overlap}: must be multiples of {ALIGN}, and a tile at least "
            "three times the overlap"
        )
