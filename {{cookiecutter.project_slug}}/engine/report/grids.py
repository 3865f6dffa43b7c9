"""Pictures: images in rows, each with its caption; tables of counts."""

from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from engine.checkpoint import write_atomically
from engine.text import drawable, font_file

WIDTH = 1000  # pixels of a picture, about
CELL = 120  # pixels that leave room for a caption
FONT_SIZE, LINE, GAP = 12, 16, 6  # pixels


def grid_columns(images: Tensor, most: int = 8) -> int:
    """How many images (N, C, H, W) fit side by side into a picture, at least 1."""
    return min(most, max(1, WIDTH // images.shape[3]))


def as_rgb(images: Tensor, deep: bool | None = None, like: Tensor | None = None) -> Tensor:
    """Images of any depth and any channels, to be shown: (..., 3, H, W), values in [0, 255].

    One or two channels are shown as grey, of more the first three. Values of more than 8 bits are
    shown from the 1st to the 99th percentile of each channel of each image.

    Args:
        images: (C, H, W) or (N, C, H, W), uint8 or float32.
        deep: Whether values are of more than 8 bits; None: if they are no uint8.
        like: Images whose percentiles are taken, in place of their own.

    Returns:
        Those of RGB and 8 bits as they are.
    """
    deep = images.dtype != torch.uint8 if deep is None else deep
    channels = images.shape[-3]
    if channels != 3:
        images = images[..., : 3 if channels > 2 else 1, :, :]
    if deep:
        ends = (images if like is None else like[..., : images.shape[-3], :, :]).float().flatten(-2)
        low, high = (_percentile(ends, share) for share in (0.01, 0.99))
        images = ((images - low) / (high - low).clamp(min=1e-30) * 255).clamp(0, 255)
    return images.expand(*images.shape[:-3], 3, *images.shape[-2:])


def _percentile(values: Tensor, share: float) -> Tensor:
    """Of the last dimension, as (..., 1, 1); torch.quantile takes no large images."""
    place = 1 + round(share * (values.shape[-1] - 1))
    return values.kthvalue(place, dim=-1).values[..., None, None]


def captioned_grid(
    images: Tensor | list[Tensor], captions: list[str], columns: int, cell: int = CELL
) -> Tensor:
    """Images in rows, each with its caption below it, as one: uint8 (3, height, width).

    Args:
        images: N of shape (3, H, W) in [0, 255]; uint8, or floats, which are rounded.
        captions: N texts of one or several lines; lines that are too long are cut off.
        columns: Images in a row.
        cell: Pixels of width that a caption has at least; small images are enlarged to about it, by
            a whole factor.
    """
    columns, rows = max(1, min(columns, len(images))), max(1, -(-len(images) // columns))
    height, width = (max((image.shape[i] for image in images), default=CELL) for i in (1, 2))
    factor = max(1, min(WIDTH // (columns * width), -(-cell // width)))
    height, width = factor * height, max(factor * width, cell)
    row = height + LINE * (1 + max((text.count("\n") for text in captions), default=0)) + GAP
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * row), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + i % columns * (width + GAP), GAP + i // columns * row
        picture = to_pil_image(image.cpu().float().round().to(torch.uint8))
        factor = min(height // picture.height, width // picture.width)
        enlarged = ImageOps.scale(picture, factor, Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left + (width - enlarged.width) // 2, top))
        for number, line in enumerate(caption.split("\n")):
            place = left + width / 2, top + height + 1 + number * LINE
            font = load_font(line)
            draw.text(place, cut_to_fit(line, font, width), "black", font, anchor="ma")
    return pil_to_tensor(sheet)


def draw_counts(counts: Tensor, names: list[str], title: str, most: int = WIDTH) -> Tensor:
    """A table of counts as an image; the shade of a cell is its share of the row.

    Args:
        counts: (K, K).
        names: Those of the K rows and columns.
        title: What the rows and the columns are.
        most: Pixels of the K cells side by side; names and counts are written if they have room.

    Returns:
        uint8 (3, height, width), on the CPU.
    """
    k, font = len(counts), load_font()
    cell = max(1, min(CELL // 3, most // k))
    fonts = [load_font(name) for name in names if cell >= LINE]
    labels = [cut_to_fit(name, own, 2 * CELL) for name, own in zip(names, fonts, strict=False)]
    sides = [own.getlength(label) for label, own in zip(labels, fonts, strict=True)]
    side = 2 * GAP + int(max(sides, default=-GAP))
    left, top = side, LINE + side
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).float()
    shades = 255 - shares * torch.tensor([225.0, 175.0, 75.0])[:, None, None]  # white to blue
    sheet = Image.new("RGB", (max(left + k * cell, 3 * CELL), top + k * cell), "white")
    table = to_pil_image(shades.round().to(torch.uint8))
    sheet.paste(table.resize((k * cell, k * cell), Image.Resampling.NEAREST), (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 0), drawable(title), "black", font)
    for i, label in enumerate(labels):
        name = Image.new("L", (side, cell))
        ImageDraw.Draw(name).text((side - GAP, cell / 2), label, 255, fonts[i], "rm")
        sheet.paste("black", (0, top + i * cell), name)
        sheet.paste("black", (left + i * cell, LINE), name.transpose(Image.Transpose.ROTATE_270))
    for row, column in counts.nonzero().tolist() if labels else ():
        place = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        number = str(int(counts[row, column]))
        color = "white" if shares[row, column] > 0.5 else "black"
        if font.getlength(number) <= cell:
            draw.text(place, number, color, font, "mm")
    return pil_to_tensor(sheet)


def save_png(picture: Tensor, path: Path) -> None:
    """Saves a picture, uint8 (3, H, W)."""
    write_atomically(path, partial(to_pil_image(picture).save, format="png"))


def load_font(text: str = "") -> Any:
    """A font for a text; that of Pillow if there is no other."""
    return _load_font(font_file(drawable(text)))


@lru_cache
def _load_font(file: str) -> Any:
    with suppress(OSError):
        return ImageFont.truetype(file, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)


def cut_to_fit(text: str, font: Any, width: int) -> str:
    """`text`, cut off so that it is not wider than `width` pixels if it can be helped."""
    text = drawable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
