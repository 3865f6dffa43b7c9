"""Rare kinds of images have the pixels that their formats define, computed here on their own."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import chunk, tiff

from engine.data import images
from engine.data.images import read_image

HEIGHT, WIDTH = 6, 8
RANDOM = np.random.default_rng(3)
COLOURS = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
ALPHA = RANDOM.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
INDICES = RANDOM.integers(0, 16, (HEIGHT, WIDTH)).astype(np.uint8)
PALETTE = RANDOM.integers(0, 256, (16, 3)).astype(np.uint8)
BGR = np.ascontiguousarray(COLOURS[..., ::-1])


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.asarray(np.round(colours * share + 255 * (1 - share)))


def check(path: Path, expected: np.ndarray, most: int = 0) -> None:
    found = np.asarray(read_image(path)).astype(int)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= most


def tga(kind: int, bits: int, data: bytes, descriptor: int = 0x20, palette: bytes = b"") -> Path:
    entry = bits if not palette else 8 * len(palette) // 16
    head = bytes([0, bool(palette), kind]) + struct.pack("<HHB", 0, 16 * bool(palette), entry)
    size = struct.pack("<4H2B", 0, 0, WIDTH, HEIGHT, bits, descriptor)
    Path("x.tga").write_bytes(head + size + palette + data)
    return Path("x.tga")


def test_colours_of_a_tga() -> None:
    check(tga(2, 24, BGR.tobytes()), COLOURS)
    check(tga(2, 24, BGR[::-1].tobytes(), 0), COLOURS)  # from the bottom
    check(tga(3, 8, ALPHA.tobytes()), ALPHA[..., None].repeat(3, 2))
    check(tga(1, 8, INDICES.tobytes(), palette=PALETTE[:, ::-1].tobytes()), PALETTE[INDICES])
    values = RANDOM.integers(0, 2**15, (HEIGHT, WIDTH)).astype("<u2")
    five = np.dstack([values >> shift & 31 for shift in (10, 5, 0)]) * 255 / 31
    check(tga(2, 16, values.tobytes()), five, most=1)


@pytest.mark.parametrize("alpha", [ALPHA, np.zeros_like(ALPHA)], ids=["some", "none"])
def test_the_fourth_channel_of_a_tga_is_what_its_head_says(
    alpha: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    images._noted.clear()
    data = np.dstack([BGR, alpha]).tobytes()
    check(tga(2, 32, data, 0x28), on_white(COLOURS, alpha), most=1)
    check(tga(2, 32, data, 0x20), COLOURS)
    assert "a fourth channel, which is no transparency, is left out" in capsys.readouterr().err


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """The rows of an image with several pixels in a byte."""
    return [
        np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
        for row in values
    ]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["opaque", "transparent", "few", "first", "last"])
def test_palettes_of_a_png(bits: int, kind: str) -> None:
    count = min(2**bits, 16)
    indices, alpha = INDICES % count, np.full(count, 255, np.uint8)
    if kind in ("transparent", "few"):
        alpha[: count if kind == "transparent" else count // 2] = ALPHA.ravel()[:1]
    elif kind != "opaque":
        alpha[0 if kind == "first" else -1] = 0
    told = {"opaque": b"", "few": alpha[: count // 2].tobytes(), "first": b"\0"}
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 3, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row for row in packed(indices, bits)))
    transparency = told.get(kind, alpha.tobytes())
    Path("x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", PALETTE[:count].tobytes())
        + (chunk(b"tRNS", transparency) if transparency else b"")
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    check(Path("x.png"), on_white(PALETTE[indices], alpha[indices]), most=1)


@pytest.mark.parametrize("factor", [257, 1], ids=["16 bits", "8 bits"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_colour_maps_of_a_tiff(bits: int, factor: int) -> None:
    count = min(2**bits, 16)
    colours = np.zeros((2**bits, 3), int)
    colours[:count] = PALETTE[:count]
    indices = INDICES % count
    rows = np.frombuffer(b"".join(packed(indices, bits)), np.uint8).reshape(HEIGHT, -1)
    tags = {256: [WIDTH], 320: (colours * factor).T.ravel().tolist()}
    check(tiff("x.tif", rows, 3, bits=bits, more=tags), PALETTE[indices])
    if bits == 8:
        values = np.dstack([indices, ALPHA])
        check(tiff("x.tif", values, 3, extra=[2], more=tags), on_white(PALETTE[indices], ALPHA), 1)


def test_premultiplied_transparency_and_ycbcr_of_a_tiff() -> None:
    alpha = ALPHA // 2 + 128
    pixels = np.dstack([np.round(COLOURS * (alpha[..., None] / 255)), alpha]).astype(np.uint8)
    check(tiff("x.tif", pixels, 2, extra=[1]), on_white(COLOURS, alpha), most=2)
    values = np.asarray(to_ycc(COLOURS.astype(float)).clip(0, 255).round(), np.uint8)
    check(tiff("x.tif", values, 6, more={530: [1, 1]}), COLOURS, most=3)


def to_ycc(rgb: np.ndarray) -> np.ndarray:
    """By ITU-R BT.601, as JFIF defines it."""
    matrix = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    return np.asarray(rgb @ np.array(matrix).T + [0, 128, 128])


@pytest.mark.parametrize("transform", [0, 2], ids=["CMYK", "YCCK"])
def test_cmyk_of_a_jpeg_of_adobe(transform: int) -> None:
    inks = RANDOM.integers(0, 256, (2, 2, 4)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    stored = 255 - inks.astype(float)  # Adobe inverts it
    planes = stored
    if transform:
        planes = np.dstack([to_ycc(255 - stored[..., :3]), stored[..., 3]]).clip(0, 255).round()
    image = Image.fromarray((255 - planes).astype(np.uint8), "CMYK")
    image.save("x.jpg", quality=100, subsampling=0)
    content = bytearray(Path("x.jpg").read_bytes())
    place = content.find(b"\xff\xee\0\x0eAdobe")
    assert place > 0
    content[place + 15] = transform
    Path("x.jpg").write_bytes(content)
    check(Path("x.jpg"), stored[..., :3] * stored[..., 3:] / 255, most=8)
