"""Pictures for reports: sheets of captioned images, and confusion matrices."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

INK, PAPER, ACCENT = (32, 32, 32), (255, 255, 255), (21, 101, 192)
MARGIN = 8


def save_sheet(
    images: list[Tensor], captions: list[str], path: Path, columns: int = 8, size: int = 112
) -> None:
    """Saves images in rows, each with its caption below it.

    Args:
        images: uint8, of shape (3, H, W); shown `size` pixels high and wide.
        captions: One for each image; `\\n` begins a new line.
        path: Where to write the PNG.
    """
    font = ImageFont.load_default(11)
    text_height = 14 * max((caption.count("\n") + 1 for caption in captions), default=1)
    step_x, step_y = size + MARGIN, size + text_height + MARGIN
    rows = -(-len(images) // columns)
    width = min(columns, max(1, len(images))) * step_x + MARGIN
    sheet = Image.new("RGB", (width, max(1, rows) * step_y + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = MARGIN + i % columns * step_x, MARGIN + i // columns * step_y
        # Enlarged pixels are shown as they are, reduced ones are averaged.
        way = Image.Resampling.NEAREST if image.shape[-1] < size else Image.Resampling.BOX
        sheet.paste(to_pil_image(image).resize((size, size), way), (left, top))
        for line, text in enumerate(caption.split("\n")):
            draw.text((left, top + size + 1 + 14 * line), _fit(text, size, font), INK, font)
    sheet.save(path)


def save_confusion(matrix: Tensor, classes: list[str], path: Path) -> None:
    """Saves a confusion matrix; the shade of a cell is its share of the row.

    Args:
        matrix: Counts of shape (K, K): row = true class, column = predicted class.
        classes: The K names.
        path: Where to write the PNG.
    """
    k = len(classes)
    cell = max(8, min(44, 1400 // k))
    font = ImageFont.load_default(max(8, min(13, cell - 6)))
    edge = int(max(font.getlength(_fit(name, 160, font)) for name in classes)) + 2 * MARGIN
    side = edge + k * cell
    picture = Image.new("RGB", (max(side, 220) + MARGIN, side + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    for row in range(k):
        for column in range(k):
            left, top = edge + column * cell, edge + row * cell
            share, count = float(shares[row, column]), int(matrix[row, column])
            shade = tuple(round(p + (a - p) * share) for p, a in zip(PAPER, ACCENT, strict=True))
            draw.rectangle((left, top, left + cell, top + cell), shade, (224, 224, 224))
            if count and cell >= 24:
                ink = PAPER if share > 0.5 else INK
                draw.text((left + cell / 2, top + cell / 2), str(count), ink, font, anchor="mm")
    for i, name in enumerate(classes):
        middle = edge + (i + 0.5) * cell
        draw.text((edge - MARGIN, middle), _fit(name, 160, font), INK, font, anchor="rm")
    # Column names stand upright: written as rows, from the last class to the first, and turned.
    names_strip = Image.new("RGB", (edge - MARGIN, k * cell), PAPER)
    pen = ImageDraw.Draw(names_strip)
    for i, name in enumerate(classes):
        pen.text((0, (i + 0.5) * cell), _fit(name, 160, font), INK, font, anchor="lm")
    picture.paste(names_strip.transpose(Image.Transpose.ROTATE_90), (edge, 0))
    legend = "rows: true class, columns: predicted class"
    draw.text((MARGIN, side + MARGIN), legend, INK, ImageFont.load_default(10))
    picture.save(path)


def _fit(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """`text`, shortened to fit into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
