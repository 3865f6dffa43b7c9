"""Pictures of batches: images in rows, each with its caption."""

from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

WIDTH = 1000  # pixels of a picture, about
CELL = 120  # pixels that leave room for a caption
FONT_SIZE, LINE, GAP = 12, 16, 6  # pixels


def grid_columns(images: Tensor, most: int = 8) -> int:
    """How many images (N, C, H, W) fit side by side into a picture, at least 1."""
    return min(most, max(1, WIDTH // images.shape[3]))


def captioned_grid(images: Tensor, captions: list[str], columns: int) -> Tensor:
    """Images in rows, each with its caption below it. Small ones are enlarged by a whole factor.

    Args:
        images: (N, 3, H, W) in [0, 255], N > 0; uint8, or floats, which are rounded.
        captions: N texts of one or several lines; lines that are too long are cut off.
        columns: Images in a row.

    Returns:
        uint8 (3, height, width), on the CPU.
    """
    n, _, height, width = images.shape
    columns = min(columns, n)
    factor = max(1, min(WIDTH // (columns * width), -(-CELL // width)))
    height, width = factor * height, factor * width
    row = height + LINE * (1 + max(caption.count("\n") for caption in captions)) + GAP
    size = (GAP + columns * (width + GAP), GAP + -(-n // columns) * row)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), load_font()
    pixels = images.cpu().float().round().to(torch.uint8)
    for i, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        left, top = GAP + i % columns * (width + GAP), GAP + i // columns * row
        enlarged = to_pil_image(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, top))
        for number, line in enumerate(caption.split("\n")):
            place = left + width / 2, top + height + 1 + number * LINE
            draw.text(place, cut_to_fit(line, font, width), "black", font, anchor="ma")
    return pil_to_tensor(sheet)


def draw_counts(counts: Tensor, names: list[str], title: str) -> Tensor:
    """A table of counts as an image; the shade of a cell is its share of the row.

    Args:
        counts: (K, K).
        names: Those of the K rows and columns.
        title: What the rows and the columns are.

    Returns:
        uint8 (3, height, width), on the CPU.
    """
    k = len(counts)
    cell = max(1, min(2 * LINE, WIDTH // k))
    written = cell >= LINE
    left, top = (CELL if written else GAP), LINE + GAP
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).float()
    shades = 255 - shares * torch.tensor([225.0, 175.0, 75.0])[:, None, None]  # white to blue
    sheet = Image.new("RGB", (max(left + k * cell, 3 * CELL), top + k * cell), "white")
    table = to_pil_image(shades.round().to(torch.uint8))
    sheet.paste(table.resize((k * cell, k * cell), Image.Resampling.NEAREST), (left, top))
    draw, font = ImageDraw.Draw(sheet), load_font()
    draw.text((GAP, 0), title, "black", font)
    for row in range(k if written else 0):
        middle = top + row * cell + cell / 2
        draw.text((GAP, middle), cut_to_fit(names[row], font, CELL - 2 * GAP), "black", font, "lm")
        for column in counts[row].nonzero().flatten().tolist():
            place, number = (left + column * cell + cell / 2, middle), str(int(counts[row, column]))
            if font.getlength(number) <= cell:
                color = "white" if shares[row, column] > 0.5 else "black"
                draw.text(place, number, color, font, "mm")
    return pil_to_tensor(sheet)


def load_font() -> Any:
    """The font of matplotlib, which has more letters than that of Pillow, or else the latter."""
    spec = find_spec("matplotlib")  # it is not imported, which would take a while
    for folder in (spec and spec.submodule_search_locations) or ():
        with suppress(OSError):
            return ImageFont.truetype(f"{folder}/mpl-data/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)


def cut_to_fit(text: str, font: Any, width: int) -> str:
    """`text`, cut off so that it is not wider than `width` pixels if it can be helped."""
    text = text.encode("utf-8", "replace").decode()  # the name of a file may be no text
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
