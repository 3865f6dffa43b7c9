"""Image files of many kinds, as other programs write them, and damaged ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.images import read_image
from engine.errors import BadInput

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colour(name: str, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    pixel = read_image(name).getpixel(at)
    assert isinstance(pixel, tuple)
    return pixel


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save("x.png")
    assert [colour("x.png", (i, 0)) for i in range(3)] == [(v, v, v) for v in (0, 100, 255)]


def test_what_is_half_transparent_is_mixed_with_white() -> None:
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.save("x.png")
    assert colour("x.png", (0, 0)) == WHITE
    assert colour("x.png", (1, 0)) == RED
    assert colour("x.png", (2, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_a_transparent_colour_of_a_palette_is_shown_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image.save("x.png", transparency=0)
    assert colour("x.png", (0, 0)) == WHITE
    assert colour("x.png", (1, 0)) == GREEN


@pytest.mark.parametrize(
    ("mode", "value", "name", "expected"),
    [
        ("L", 77, "x.png", (77, 77, 77)),
        ("1", 1, "x.png", WHITE),
        ("CMYK", (0, 0, 0, 255), "x.jpg", (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "x.tiff", RED),
        ("RGB", BLUE, "x.webp", BLUE),
        ("RGB", GREEN, "x.bmp", GREEN),
        ("L", 9, "x.pgm", (9, 9, 9)),
    ],
)
def test_every_kind_becomes_rgb(
    mode: str, value: int | tuple[int, ...], name: str, expected: tuple[int, int, int]
) -> None:
    Image.new(mode, (8, 8), value).save(name)
    assert read_image(name).mode == "RGB"
    assert colour(name) == pytest.approx(expected, abs=3)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what is odd but not fatal
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tiff", "x.webp", "x.bmp", "x.ppm"])
def test_a_damaged_file_is_named(name: str) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(name)
    whole = Path(name).read_bytes()
    for _ in range(150):
        content = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(content), 4):
            content[place] = random.integers(256)
        Path(name).write_bytes(content)
        try:
            read_image(name)
        except BadInput as error:
            assert name in str(error)


@pytest.mark.filterwarnings("ignore")
def test_a_file_with_damaged_exif_is_named() -> None:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "cam", {0x9003: "2020"}
    Image.new("RGB", (8, 8), RED).save("x.jpg", exif=exif)
    whole = Path("x.jpg").read_bytes()
    for _ in range(2000):
        content = bytearray(whole)
        for place in random.integers(20, 110, 2):
            content[place] = random.integers(256)
        Path("x.jpg").write_bytes(content)
        try:
            read_image("x.jpg")
        except BadInput as error:
            assert "x.jpg" in str(error)
