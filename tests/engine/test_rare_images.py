"""Rare kinds of images have the pixels that their formats define, computed here on their own."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import chunk, tiff

from engine.data import images
from engine.data.images import read_image
from engine.errors import BadInput

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
    head = bytes([0, bool(palette), kind]) + struct.pack("<HHB", 0, len(palette) // 3, 24)
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


def indexed_png(indices: np.ndarray, bits: int, colours: np.ndarray, alpha: bytes = b"") -> Path:
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 3, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row for row in packed(indices, bits)))
    Path("x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", colours.tobytes())
        + (chunk(b"tRNS", alpha) if alpha else b"")
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    return Path("x.png")


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
    transparency = told.get(kind, alpha.tobytes())
    path = indexed_png(indices, bits, PALETTE[:count], transparency)
    check(path, on_white(PALETTE[indices], alpha[indices]), most=1)


def bmp(indices: np.ndarray, colours: np.ndarray, bits: int = 8, core: bool = False) -> Path:
    """Writes a BMP as any program may; `core`: with the head of OS/2."""
    count = len(colours)
    data = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in packed(indices[::-1], bits))
    if core:
        head = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
        colours = np.vstack([colours, np.zeros((2**bits - count, 3), np.uint8)])
        table = colours[:, ::-1].tobytes()
    else:
        sizes = (len(data), 0, 0, count, 0)
        head = struct.pack("<IiiHHI5I", 40, WIDTH, HEIGHT, 1, bits, 0, *sizes)
        table = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
    start = 14 + len(head) + len(table)
    whole = struct.pack("<2sIII", b"BM", start + len(data), 0, start) + head + table + data
    Path("x.bmp").write_bytes(whole)
    return Path("x.bmp")


def gif(indices: np.ndarray, colours: np.ndarray, clear: int | None = None) -> Path:
    """Writes a GIF whose table of colours may be shorter than its pixels need."""
    image = Image.fromarray(indices)
    image.putpalette(RANDOM.integers(0, 256, (256, 3)).astype(np.uint8).tobytes())
    if clear is not None:
        image.info["transparency"] = clear
    image.save("x.gif", optimize=False)
    content = Path("x.gif").read_bytes()
    assert content[10] & 7 == 7, "a table of 256 colours"
    size = bytes([content[10] & 0xF8 | len(colours).bit_length() - 2])
    table = colours.tobytes()
    Path("x.gif").write_bytes(content[:10] + size + content[11:13] + table + content[13 + 768 :])
    return Path("x.gif")


INDEXED: dict[str, Callable[[np.ndarray, np.ndarray], Path]] = {
    "PNG": lambda indices, colours: indexed_png(indices, 8, colours),
    "PNG, transparent": lambda indices, colours: indexed_png(indices, 8, colours, b"\x80"),
    "PNG of 4 bits": lambda indices, colours: indexed_png(indices, 4, colours),
    "GIF": gif,
    "BMP": bmp,
    "BMP of 4 bits": lambda indices, colours: bmp(indices, colours, 4),
    "TGA": lambda indices, colours: tga(
        1, 8, indices.tobytes(), palette=colours[:, ::-1].tobytes()
    ),
    "TIFF": lambda indices, colours: tiff(
        "x.tif", indices, 3, more={320: (colours * 257).T.ravel().tolist()}
    ),
}


@pytest.mark.parametrize("kind", INDEXED)
def test_a_colour_that_the_palette_has_not_is_damage(kind: str) -> None:
    colours = PALETTE[:8].astype(int if kind == "TIFF" else np.uint8)
    path = INDEXED[kind](INDICES % 8, colours)
    clear = [0.5] + [1.0] * 7 if kind == "PNG, transparent" else [1.0] * 8
    check(path, on_white(PALETTE[INDICES % 8], 255 * np.array(clear)[INDICES % 8]), most=1)
    beyond = INDICES % 8
    beyond[2, 3] = 11
    path = INDEXED[kind](beyond, colours)
    with pytest.raises(BadInput, match=rf"{path}: .*uses colour 11, and its palette ends at 7\)"):
        read_image(path)


def test_a_transparent_colour_need_not_be_in_the_palette() -> None:
    beyond = np.where(INDICES > 7, 200, INDICES).astype(np.uint8)
    expected = np.where((INDICES > 7)[..., None], 255, PALETTE[INDICES % 8])
    check(gif(beyond, PALETTE[:8], clear=200), expected)


@pytest.mark.parametrize("core", [False, True], ids=["Windows", "OS/2"])
def test_a_bmp_of_few_greys_is_refused_where_it_would_be_misread(core: bool) -> None:
    greys = np.array([0, 255], np.uint8)[:, None].repeat(3, 1)
    check(bmp(INDICES % 2, greys, 1, core), greys[INDICES % 2])
    for bits in (4, 8):
        check(bmp(INDICES % 4, PALETTE[:4], bits, core), PALETTE[INDICES % 4])
        if core:  # whose palette has all colours: these are not two alone
            check(bmp(INDICES % 2, greys, bits, core), greys[INDICES % 2])
            continue
        with pytest.raises(BadInput, match=r"x\.bmp: a BMP of few greys, of a rare kind; convert"):
            read_image(bmp(INDICES % 2, greys, bits))


@pytest.mark.parametrize("planar", [False, True], ids=["together", "planes"])
def test_a_tiff_without_some_of_its_strips_is_damage(planar: bool) -> None:
    values = COLOURS.transpose(2, 0, 1).reshape(COLOURS.shape) if planar else COLOURS
    planes, rows = (3, 2) if planar else (1, 2)
    size = values.nbytes // planes // 3  # of each of three strips, of two rows
    places = [8 + size * i for i in range(3 * planes)]
    tags = {256: [WIDTH], 257: [HEIGHT], 278: [rows], 284: [2 if planar else 1]}

    def written(places: list[int]) -> Path:
        more = {273: places, 279: [size * (place > 0) for place in places]}
        return tiff("x.tif", np.ascontiguousarray(values), 2, more=tags | more)

    check(written(places), COLOURS)
    total = len(places)
    for found in (places[:1], places[:-1], [*places[:-1], 0]):  # the last one is not stored
        there = len([place for place in found if place])
        with pytest.raises(BadInput, match=rf"x\.tif: .*\(has {there} of {total} strips\)"):
            read_image(written(found))


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
