"""Large images in overlapping tiles, where these give what the whole image would."""

import math
import re
from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor

from engine import terminal
from engine.arguments import Parser, auto_or, number
from engine.data.stored import to_depth
from engine.errors import OUT_OF_MEMORY, BadInput, Fault, shorten
from task.depth import RGB_SCALE, Scale

ALIGN = 32  # tiles begin at multiples of this: a generator that halves the size 5 times fits
BLEND = 8  # pixels over which two neighbouring tiles are blended
TILE = 768  # pixels
OVERLAPS = (64, 128, 256)  # pixels; powers of 2, so that layers of any step fit
LIMIT = 1.0  # grey levels that two tiles may differ by, more than rounding to bf16 makes
TOO_SMALL = r"Padding size should be less|Kernel size can't be greater|[Oo]utput size is too small"
Predict = Callable[[Tensor], Tensor]  # (1, C, H, W) -> float32 (1, K, H, W)


class InTiles:
    """Applies a network to images of any size: (C, H, W) -> float32 (K, H, W).

    Images larger than a tile are processed in tiles if the network sees no farther than these
    overlap, which is measured once. If it sees the whole image, as with instance norm, the tiles
    would not fit together; then it is processed whole, unless `--tile` was given. What was not
    measured at first shows where two tiles meet: `warn` tells.

    Args:
        predict: The network. For classes it has to return scores: these can be blended.
        opt: tile and overlap, None for auto.
        scale: The form of the images, and their range, whose 255th part is a grey level.
    """

    def __init__(self, predict: Predict, opt: Namespace, scale: Scale = RGB_SCALE) -> None:
        self.predict, self.opt, self.scale = predict, opt, scale
        self.plan: tuple[int | None, int] | None = None  # tile (None: the whole image), overlap
        self.difference = 0.0  # between two tiles where they meet, the largest of all images
        self.differing: dict[str, int] = {}  # images above LIMIT, and their larger side

    def __call__(self, image: Tensor, name: str) -> Tensor:
        """The output for an image.

        Raises:
            BadInput: The image is too small for the network.
            Fault: The memory does not suffice.
        """
        try:
            return self._apply(image, name)
        except Exception as error:  # that of onnxruntime is of its own kind
            size = f"{image.shape[2]} x {image.shape[1]} pixels"
            if re.search(TOO_SMALL, str(error)):
                raise BadInput(f"{name}: {size} are too few for this network") from None
            text = "out of memory" if isinstance(error, MemoryError) else str(error)
            if not re.search(f"{OUT_OF_MEMORY}|allocate memory", text):
                raise
            side = (self.plan or (None,))[0] or max(image.shape)
            lower = max(3 * ALIGN, min(TILE, side // 2 // ALIGN * ALIGN))
            raise Fault(f"{name}: out of memory for {size}; try --tile {lower}") from None

    def _apply(self, image: Tensor, name: str) -> Tensor:
        if max(image.shape) <= (self.opt.tile or TILE):
            return self.predict(image[None])[0]
        if self.plan is None:
            self.plan = self._make_plan(image.device)
        tile, overlap = self.plan
        if tile is None:
            return self.predict(image[None])[0]
        output, difference = apply_in_tiles(self.predict, image, tile, overlap)
        difference *= 255 / self.scale.span
        self.difference = max(self.difference, difference)
        if difference > LIMIT:
            self.differing[name] = max(image.shape)
        return output

    def _make_plan(self, device: torch.device) -> tuple[int | None, int]:
        tile, overlap = self.opt.tile, self.opt.overlap
        if tile and overlap:
            return tile, overlap
        fitting = [o for o in OVERLAPS if 3 * o <= (tile or TILE)] or [ALIGN]
        choice = [overlap] if overlap else fitting
        reach = measure_reach(self.predict, choice[-1], device, self.scale)
        for overlap in choice:
            if overlap >= 2 * reach + BLEND:
                return tile or TILE, overlap
        if tile:
            return tile, choice[-1]
        terminal.say(
            f"images larger than {TILE} pixels are processed whole, since the network sees too far "
            f"for tiles; --tile {TILE} takes less memory, and changes the outputs"
        )
        return None, 0

    def warn(self) -> None:
        """Says in a line which images the tiles gave another output than the whole would."""
        if self.differing:
            side = math.ceil(max(self.differing.values()) / ALIGN) * ALIGN
            terminal.warn(
                f"{shorten(list(self.differing), 3)}: tiles differ by up to {self.difference:.0f} "
                "of 255 grey levels where they meet, since the network sees farther than they "
                f"overlap; --tile {side} takes whole images"
            )


def measure_reach(
    predict: Predict, side: int, device: torch.device, scale: Scale = RGB_SCALE
) -> int:
    """How far away the pixels are that change the output, in pixels; `side` or less.

    Two images are compared: noise, grey and then of all values but mostly bright, and its grey half
    alone. So their means, deviations and extremes differ much.
    """
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(1, scale.form.channels, side, 2 * side, generator=random)
    noise[..., side:] = noise[..., side:].sqrt()
    noise[..., :side] = 0.4 + 0.2 * noise[..., :side]
    noise = to_depth(scale.low + scale.span * noise, scale.form.depth).to(device)
    with torch.autocast(device.type, enabled=False):  # it is not to be mistaken for rounding
        difference = predict(noise)[..., :side] - predict(noise[..., :side])
    least = LIMIT / 4 * scale.span / 255
    columns = difference.abs().amax(dim=(0, 1, 2)).gt(least).nonzero()
    return side - int(columns[0]) if len(columns) else 0


def apply_in_tiles(
    predict: Predict, image: Tensor, tile: int, overlap: int
) -> tuple[Tensor, float]:
    """Applies `predict` to an image tile by tile; the memory needed is that of one tile.

    A tile is wrong near its borders, so the middle of an overlap is blended. If an output depends
    on pixels at most `(overlap - 8) / 2` away, the result is that of the whole image.

    Args:
        predict: (1, C, H, W) -> floats (1, K, H, W), not integers such as class ids.
        image: (C, H, W).
        tile: Height and width of a tile, at least three times `overlap`; multiples of ALIGN.
        overlap: Pixels that neighbours share.

    Returns:
        float32 (K, H, W), and the largest difference between two tiles where they are blended.
    """
    _, height, width = image.shape
    border, difference = (overlap - BLEND) // 2, 0.0
    middle = slice(border, border + BLEND)
    total: Tensor | None = None
    above: dict[int, Tensor] = {}  # what the tile above gave for the rows that are blended
    for top in starts(height, tile, overlap):
        before: Tensor | None = None  # what the tile before gave for the columns
        for left in starts(width, tile, overlap):
            part = predict(image[None, :, top : top + tile, left : left + tile])[0]
            if not part.is_floating_point():
                raise TypeError("integers, such as class ids, cannot be blended: return scores")
            if total is None:
                total = torch.zeros(len(part), height, width, device=image.device)
            met = [part[:, middle] - above[left]] if left in above else []
            met += [] if before is None else [part[..., middle] - before]
            difference = max([difference, *(float(seam.abs().max()) for seam in met)])
            above[left] = part[:, -overlap:][:, middle].clone()
            before = part[..., -overlap:][..., middle]
            down = ramp(top, part.shape[1], height, overlap).to(image.device)
            across = ramp(left, part.shape[2], width, overlap).to(image.device)
            weighted = part * down[:, None] * across
            total[:, top : top + tile, left : left + tile] += weighted
    return total, difference  # type: ignore[return-value]  # there is a tile


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
    """Adds the options for `InTiles`."""
    add, size = parser.add_argument, auto_or(number(int, ALIGN))
    tile = f"size of the tiles of larger images (default: {TILE}, or whole images if the network "
    add("--tile", type=size, metavar="N", help=tile + "sees too far for tiles)")
    overlap = "pixels that two tiles share (default: as many as the network needs)"
    add("--overlap", type=size, metavar="N", help=overlap)


def check_tiles(opt: Namespace) -> None:
    """Raises BadInput unless `--tile` and `--overlap` fit together."""
    tile, overlap = opt.tile or TILE, opt.overlap or ALIGN
    if tile % ALIGN or overlap % ALIGN or tile < 3 * overlap:
        raise BadInput(
            f"--tile {tile} --overlap {overlap}: must be multiples of {ALIGN}, and a tile at least "
            "three times the overlap"
        )
