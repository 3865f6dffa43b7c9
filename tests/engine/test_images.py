"""Reading and listing images, dividing them by hash, and the serialized list of their names."""

import errno
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from engine.data import images
from engine.data.files import (
    SerializedList,
    images_below,
    linked_images,
    list_images,
    nearly,
    read_dataset_json,
    warn_shared,
)
from engine.data.images import image_size, read_image
from engine.errors import BadInput

LISTS = [
    [],
    [""],
    ["a"],
    ["", "", "b", ""],
    ["train/cat/1.jpg", "train/dog/2.jpg", "x"],
    ["Löwe 100%.png", "猫/🐈.png", "new\nline", "\0"],
    [os.fsdecode(b"latin\xe9.png"), "\udcc3\udca9", "é", "\ud83d"],
]


@pytest.mark.parametrize("names", LISTS)
def test_it_is_the_list(names: list[str]) -> None:
    packed = SerializedList(names)
    assert len(packed) == len(names)
    assert list(packed) == names
    assert [packed[i] for i in range(len(names))] == names
    assert [packed[-i] for i in range(1, len(names) + 1)] == names[::-1]
    for part in (slice(None), slice(1, 3), slice(None, None, -1), slice(-2, 100, 2), slice(5, 1)):
        assert packed[part] == names[part]
    for index in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            packed[index]


def test_digests_tell_lists_apart() -> None:
    lists = [*LISTS, ["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], ["c", "ab"]]
    assert len({SerializedList(names).digest() for names in lists}) == len(lists)
    assert SerializedList(iter(["ab", "c"])).digest() == SerializedList(["ab", "c"]).digest()


def private_memory() -> int:
    """The bytes of memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux has it")
def test_a_worker_that_reads_all_names_copies_none() -> None:
    """A list of 200,000 of them grows by 15 MB here: looking at a string writes to it."""
    names = SerializedList(f"train/a class with a name/image-{i:06d}.jpg" for i in range(200_000))
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        before = private_memory()
        letters = sum(len(name) for name in names)
        os.write(write, f"{private_memory() - before} {letters}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    grown, letters = map(int, os.read(read, 100).split())
    assert letters == 200_000 * 42
    assert grown < 3e6


def save(path: str, image: Image.Image, **more: Any) -> Path:
    image.save(path, **more)
    return Path(path)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def pixel(path: Path) -> tuple[int, ...]:
    image = read_image(path)
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_images_of_any_kind_are_read_as_rgb() -> None:
    grey, deep = Image.new("L", (2, 2), 80), Image.new("I;16", (2, 2), 80 * 257)
    assert pixel(save("grey.png", grey)) == (80, 80, 80)
    assert pixel(save("deep.png", deep)) == (80, 80, 80)  # 16 bits
    assert pixel(save("grey.tif", Image.new("1", (2, 2), 1))) == (255, 255, 255)
    palette = Image.new("RGB", (2, 2), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(save("palette.png", palette)) == (10, 20, 30)


def test_transparency_is_on_white() -> None:
    for name, colour in (
        ("half.png", (0, 0, 0, 0)),
        ("hidden.png", (200, 0, 0, 0)),  # else the colour hidden behind it would show
    ):
        assert pixel(save(name, Image.new("RGBA", (2, 2), colour))) == (255, 255, 255)
    assert pixel(save("opaque.png", Image.new("RGBA", (2, 2), (9, 8, 7, 255)))) == (9, 8, 7)
    grey = Image.new("LA", (2, 2), (0, 0))
    assert pixel(save("grey.png", grey)) == (255, 255, 255)
    glass = Image.new("RGB", (2, 2), (5, 6, 7))
    assert pixel(save("key.png", glass, transparency=(5, 6, 7))) == (255, 255, 255)


def test_images_are_upright() -> None:
    image = noise(6, 4)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        path = save(f"{orientation}.png", image, exif=exif)
        upright = read_image(path)
        assert upright.size == image_size(path) == ((4, 6) if orientation >= 5 else (6, 4))
    turned = np.asarray(read_image("6.png"))
    assert (turned == np.rot90(np.asarray(image), -1)).all()


def test_a_large_jpeg_may_be_decoded_smaller_but_not_too_small() -> None:
    path = save("large.jpg", noise(256, 160))
    assert read_image(path).size == (256, 160)
    width, height = read_image(path, least=(50, 30)).size
    assert 50 <= width < 256 and 30 <= height < 160
    assert read_image(path, least=(300, 300)).size == (256, 160)


@pytest.mark.parametrize("content", [b"", b"a text", b"\x89PNG\r\n\x1a\n half"])
def test_a_file_that_is_no_image_is_named(content: bytes) -> None:
    path = Path("broken.png")
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(BadInput, match=r"^broken\.png: not readable as an image"):
            read(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read_image("nowhere.png")


def test_too_little_memory_is_not_the_file_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    path = save("whole.png", noise(2, 2))
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        read_image(path)


def test_hidden_files_and_other_files_are_no_images() -> None:
    for name in ("b/2.JPG", "b/10.png", "a.webp", ".hidden/1.png", "b/._1.png", "b/x.txt", "z"):
        path = Path("folder", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    expected = [str(Path("folder", name)) for name in ("a.webp", "b/10.png", "b/2.JPG")]
    assert images_below("folder") == expected


def test_dataset_json() -> None:
    assert read_dataset_json(Path()) == {}
    for encoding in ("utf-8", "utf-8-sig"):
        Path("dataset.json").write_text('{"flip": false, "name": "Löwe"}', encoding=encoding)
        assert read_dataset_json(Path()) == {"flip": False, "name": "Löwe"}
    Path("dataset.json").write_text('{"pairs": "x"}')
    assert read_dataset_json(Path(), "pairs") == {"pairs": "x"}
    for text in ('{"Flip": false}', '{"flip ": false}', '{"mirror": false}', '{"pairs": "x"}'):
        Path("dataset.json").write_text(text)
        with pytest.raises(BadInput, match=r"^dataset\.json: unknown: '.*'; known: flip, images"):
            read_dataset_json(Path())


# Depth, channels, orientation: whatever a file's head says is what is read, or it is refused.

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)
FORMATS = ["jpg", "png", "webp", "tif", "avif", "mpo", "gif", "bmp", "jp2", "tga", "ppm"]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("value", [None, *range(10), 255, 65535])
def test_the_size_told_is_the_size_read(ending: str, value: int | None) -> None:
    exif = Image.Exif()
    if value is not None:
        exif[274] = value
    path = save(f"x.{ending}", Image.fromarray(COLOURS), exif=exif)
    expected = (6, 10) if value in (5, 6, 7, 8) else (10, 6)
    if ending in FORMATS[6:]:  # which have no EXIF
        expected = (10, 6)
    assert image_size(path) == read_image(path).size == expected


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: str, bits: int, colour: int, row: bytes, *more: bytes, width: int = 1) -> Path:
    """Writes a PNG of one row, with more chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    body = [head, *more, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    return Path(path)


def test_exif_behind_the_pixels_counts_and_damaged_exif_does_not() -> None:
    path = save("x.png", Image.fromarray(COLOURS))
    exif = Image.Exif()
    exif[274] = 6
    whole = path.read_bytes()
    path.write_bytes(
        whole[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + whole[-12:]
    )
    assert image_size(path) == read_image(path).size == (6, 10)
    for ending in ("jpg", "png", "webp"):
        for content in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\xff\xff\xff"):
            path = save(f"x.{ending}", Image.fromarray(COLOURS), exif=content)
            assert image_size(path) == read_image(path).size == (10, 6)


def tiff(
    path: str,
    values: np.ndarray,
    kind: int,
    *,
    bits: int = 0,
    numbers: int = 1,
    extra: list[int] | None = None,
    more: dict[int, list[int]] | None = None,
) -> Path:
    """Writes a TIFF as other programs do: `kind` is its photometric interpretation."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, channels = values.shape
    bits = bits or values.itemsize * 8
    tags = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [kind], 273: [8]}
    tags |= {277: [channels], 278: [height], 279: [values.nbytes], 339: [numbers] * channels}
    tags |= ({} if extra is None else {338: extra}) | (more or {})
    pixels = values.tobytes() + bytes(values.nbytes % 2)
    start = 8 + len(pixels)
    place = start + 6 + 12 * len(tags)
    entries, lists = b"", b""
    for tag, numbers_of in sorted(tags.items()):
        content = struct.pack(f"<{len(numbers_of)}H", *numbers_of)
        if len(content) > 4:
            lists, content = lists + content, struct.pack("<I", place + len(lists))
        entries += struct.pack("<HHI", tag, 3, len(numbers_of)) + content.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", start)
    ifd = struct.pack("<H", len(tags)) + entries + bytes(4) + lists
    Path(path).write_bytes(head + pixels + ifd)
    return Path(path)


GREY = COLOURS[..., 0]
WIDE = GREY.astype(np.uint16)
TOO_DEEP: dict[str, tuple[Callable[[], Path], str]] = {
    "12 bits in a PNG": (
        lambda: save("x.png", Image.fromarray(WIDE * 16)),
        r"has 16 bits \(\d+ to \d+\) in each channel, and would lose levels; convert",
    ),
    "indices in a PNG": (lambda: save("x.png", Image.fromarray(WIDE)), "has 16 bits"),
    "16 bits of colour": (lambda: png("x.png", 16, 2, bytes(6)), "has 16 bits"),
    "16 bits and alpha": (lambda: png("x.png", 16, 4, bytes(4)), "has 16 bits"),
    "16 bits of all": (lambda: png("x.png", 16, 6, bytes(8)), "has 16 bits"),
    "16 bits in a TIFF": (lambda: tiff("x.tif", WIDE + 300, 1), "has 16 bits"),
    "16 bits, white is 0": (lambda: tiff("x.tif", WIDE * 257, 0), "has 16 bits"),
    "colour in a TIFF": (lambda: tiff("x.tif", COLOURS.astype(np.uint16), 2), "has 16 bits"),
    "12 bits in a TIFF": (lambda: tiff("x.tif", COLOURS[..., :1], 1, bits=12), "has 12 bits"),
    "32 bits": (lambda: tiff("x.tif", GREY.astype(np.uint32), 1), "has 32 bits"),
    "signed": (lambda: tiff("x.tif", GREY.astype(np.int32), 1, numbers=2), "has signed"),
    "signed bytes": (lambda: tiff("x.tif", GREY.astype(np.int8), 1, numbers=2), "has signed"),
    "float": (lambda: tiff("x.tif", GREY.astype(np.float32), 1, numbers=3), "32-bit float"),
    "double": (lambda: tiff("x.tif", GREY.astype(np.float64), 1, numbers=3), "64-bit float"),
    "float colour": (lambda: tiff("x.tif", COLOURS.astype(np.float32), 2, numbers=3), "32-bit fl"),
    "5 channels": (
        lambda: tiff("x.tif", np.dstack([COLOURS, COLOURS[..., :2]]), 2, extra=[0, 0]),
        "a TIFF of 5 channels, of which some would be lost",
    ),
    "8 channels": (lambda: tiff("x.tif", np.dstack([COLOURS] * 3)[..., :8], 1), "8 channels"),
    "2 channels": (lambda: tiff("x.tif", COLOURS[..., :2], 1, extra=[0]), "a TIFF of 2 channels"),
    "a PPM of 10 bits": (lambda: text("x.ppm", b"P6 1 1 1023 " + bytes(6)), "values up to 1023"),
    "a PGM of 12 bits": (lambda: text("x.pgm", b"P5 1 1 4095 " + bytes(2)), "values up to 4095"),
    "JPEG 2000": (lambda: save("x.jp2", Image.fromarray(WIDE)), "has 16 bits"),
    "JPEG of 12 bits": (
        lambda: text("x.jpg", b"\xff\xd8\xff\xc1\0\x11\x0c\0\1\0\1\3\1\x11\0\2\x11\1\3\x11\1"),
        "more than 8 bits",
    ),
    "Lab": (lambda: tiff("x.tif", COLOURS, 8), "its colours are Lab"),
    "Lab of ICC": (lambda: tiff("x.tif", COLOURS, 9), "its colours are Lab"),
    "YCbCr": (lambda: tiff("x.tif", COLOURS[:2], 6, more={530: [2, 2]}), "YCbCr in fewer pixels"),
    "YCbCr by default": (lambda: tiff("x.tif", COLOURS[:2], 6), "YCbCr in fewer pixels"),
    "no palette": (lambda: png("x.png", 8, 3, b"\0"), r"not readable as an image \(damaged\)"),
    "pages": (
        lambda: save("x.tif", Image.new("L", (2, 2)), save_all=True, append_images=[noise(3, 2)]),
        "a TIFF of 2 pages; save each",
    ),
    "an icon": (lambda: save("x.ico", noise(16, 16)), "an image of the kind ICO"),
}


def text(path: str, content: bytes) -> Path:
    Path(path).write_bytes(content)
    return Path(path)


@pytest.mark.parametrize("case", TOO_DEEP)
def test_what_would_lose_levels_or_channels_is_refused_with_the_reason(case: str) -> None:
    make, reason = TOO_DEEP[case]
    path = make()
    with pytest.raises(BadInput, match=rf"^{re.escape(str(path))}: .*{reason}"):
        read_image(path)


@pytest.mark.parametrize(("third", "bits"), [(0x0C, 8), (0x4C, 10), (0x6C, 12)])
def test_an_avif_of_ten_bits_is_refused(
    third: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow can only write such of 8 bits."""
    path = save("x.avif", noise(8, 8))
    find = images._find
    other = text("other.avif", b"av1C\x81\x20" + bytes([third]))
    monkeypatch.setattr(images, "_find", lambda path, pattern: find(other, pattern))
    if bits > 8:
        with pytest.raises(BadInput, match=f"has {bits} bits"):
            read_image(path)
    else:
        read_image(path)


def test_what_was_made_of_eight_bits_loses_nothing() -> None:
    for path in (
        save("x.png", Image.fromarray(WIDE * 257)),
        tiff("x.tif", WIDE * 257, 1),
        text("x.pgm", b"P5 10 6 65535 " + (WIDE * 257).astype(">u2").tobytes()),
    ):
        assert (np.asarray(read_image(path))[..., 0] == GREY).all()


def test_a_colour_that_is_transparent_is_compared_in_the_depth_of_the_file() -> None:
    def row(path: Path) -> list[int]:
        return np.asarray(read_image(path))[0, :, 0].tolist()

    clear = chunk(b"tRNS", struct.pack(">H", 200))
    values = struct.pack(">4H", 200, 200 * 257, 7 * 257, 65535)
    assert row(png("x.png", 16, 0, values, clear, width=4)) == [255, 200, 7, 255]
    clear = chunk(b"tRNS", struct.pack(">H", 1))
    assert row(png("x.png", 4, 0, b"\x12", clear, width=2)) == [255, 34]
    assert row(png("x.png", 2, 0, b"\x60", clear, width=2)) == [255, 170]
    assert row(png("x.png", 1, 0, b"\x40", clear, width=2)) == [0, 255]


@pytest.mark.parametrize("extra", [None, [0]])
def test_a_fourth_channel_that_is_no_alpha_is_left_out(
    extra: list[int] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    images._noted.clear()
    path = tiff("x.tif", np.dstack([COLOURS, np.zeros_like(GREY)]), 2, extra=extra)
    for _ in range(2):
        assert (np.asarray(read_image(path)) == COLOURS).all()
    assert capsys.readouterr().err == (
        "warning: x.tif: a fourth channel, which is no transparency, is left out; also of others "
        "like it\n"
    )
    path = tiff("x.tif", np.dstack([COLOURS, np.zeros_like(GREY)]), 2, extra=[2])
    assert (np.asarray(read_image(path)) == 255).all()


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif", "mpo"])
def test_of_several_pictures_the_first_is_read_and_that_is_said_once(
    ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images._noted.clear()
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    path = save(f"x.{ending}", pages[0], save_all=True, append_images=pages[1:])
    for _ in range(2):
        assert max(pixel(path)) < 9
    assert capsys.readouterr().err.count("the first of several pictures is read") == 1


def test_copies_of_a_page_and_masks_are_no_pages() -> None:
    small = noise(2, 2)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    path = save("x.tif", noise(8, 8), save_all=True, append_images=[small])
    assert read_image(path).size == (8, 8)


# What is no image, and the machine's errors.

WHAT = {
    b"": "empty",
    bytes(5000): "nothing but zeros",
    b"\0\0\0\x18ftypheic\0\0": "a HEIC image; convert it to JPEG or PNG",
    b"\0\0\0\x18ftypisom": "a video",
    b"\xff\x0a\x10": "a JPEG XL image",
    b"\n<!DOCTYPE html><html>": "a page of HTML, as after a failed download",
    b"<html lang=en>": "a page of HTML",
    b"version https://git-lfs.github.com/spec/v1\noid": "fetch its file with git lfs pull",
    b"/annex/objects/SHA256E-s1--x.jpg\n": "git annex get",
    b"<?xml version='1.0'?>\n<svg xmlns=''>": "a drawing (SVG)",
    b"%PDF-1.4\xff": "a PDF document",
    b"PK\x03\x04\xff": "an archive",
    b"404: not found\n": "a text",
    b"\x01\x02\xfe": "of no kind that is known",
}


@pytest.mark.parametrize("content", WHAT)
def test_what_is_no_image_is_called_what_it_is(content: bytes) -> None:
    path = text("x.jpg", content)
    for read in (read_image, image_size):
        with pytest.raises(BadInput, match=r"^x\.jpg: not readable as an image: ") as error:
            read(path)
        assert WHAT[content] in str(error.value)


def test_a_folder_is_called_one() -> None:
    Path("x.jpg").mkdir()
    with pytest.raises(BadInput, match=r"^x\.jpg: not readable: is a folder;"):
        read_image("x.jpg")


@pytest.fixture(autouse=True)
def filters() -> None:
    """Each test has filters of warnings of its own, by pytest."""
    images._lift_limits.cache_clear()


def test_limits_for_servers_do_not_hold(recwarn: pytest.WarningsRecorder) -> None:
    """Much metadata, a large profile, and 100 million pixels, of which Pillow would warn."""
    more = PngImagePlugin.PngInfo()
    more.add_text("workflow", "x" * 2_000_000, zip=True)
    path = save("x.png", noise(4, 4), pnginfo=more, icc_profile=os.urandom(2_000_000))
    assert read_image(path).size == (4, 4)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    data = zlib.compressobj(1)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0")
        + chunk(b"IDAT", data.compress(b"\0") + data.flush())
    )
    assert image_size(path) == (20_000, 20_000)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b""))
    with pytest.raises(BadInput, match=r"40000 x 40000 pixels are more than .* reduce it"):
        image_size(path)
    assert not recwarn.list


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_errors_of_the_machine_are_no_fault_of_the_file(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save("x.png", noise(4, 4))

    def fail(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    for owner, name in ((Image, "open"), (PngImagePlugin.PngImageFile, "load")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            for read in (read_image, image_size):
                with pytest.raises(OSError) as error:
                    read(path)
                assert (error.value.errno, error.value.filename) == (number, "x.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            list_images(".")


def test_a_file_that_is_gone_is_the_machine_s_and_a_link_to_nowhere_is_not() -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        read_image("gone.png")
    Path("link.png").symlink_to("gone.png")
    with pytest.raises(BadInput, match=r"^link\.png: not readable: a link to nowhere"):
        read_image("link.png")


# Listing.


def test_links_never_take_the_images_of_the_folder_they_lead_to() -> None:
    for name in ("a/1.png", "b/2.png", "b/in/3.png", ".hidden/4.png", "@eaDir/5.png"):
        path = Path("root", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    Path("outside").mkdir()
    Path("outside/6.png").write_bytes(b"")
    for name, target in {
        "a/self": ".",
        "a/up": "..",
        "a/above": "../..",
        "a/stolen": "../b/in",
        "a/out": "../../outside",
        "b/out": "../../outside",
        "b/x.png": "nowhere.png",
        "b/loop.png": "loop.png",
    }.items():
        Path("root", name).symlink_to(target)
    os.mkfifo("root/b/pipe.png")
    found = list_images("root")
    assert found.folders == ["a", "b"]
    assert found.images == [
        "a/1.png",
        "a/out/6.png",
        "b/2.png",
        "b/loop.png",
        "b/x.png",
        "b/in/3.png",
    ]
    assert found.unused == [
        f"a/above/ (the same folder as {Path.cwd()})",
        "a/self/ (the same folder as root/a)",
        "a/stolen/ (the same folder as root/b/in)",
        "a/up/ (the same folder as root)",
        "b/out/ (the same folder as root/a/out)",
        "b/pipe.png",
    ]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_images_that_are_one_file_are_found(link: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "train/b/3.png", "val/a/4.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"the same bytes are no link")
    train, val = list_images("train"), list_images("val")
    assert linked_images(train) == linked_images(train, val) == []
    warn_shared(train, val)
    assert not capsys.readouterr().err
    link(Path("train/a/1.png").resolve(), "train/b/again.png")
    link(Path("train/b/3.png").resolve(), "val/a/also.png")
    Path("val/a/dead.png").symlink_to("nowhere")
    train, val = list_images("train"), list_images("val")
    assert linked_images(train) == [("train/a/1.png", "train/b/again.png")]
    warn_shared(train, val)
    line = "warning: the same images in two splits: val/a/also.png is train/b/3.png\n"
    assert capsys.readouterr().err == line


def test_numbers_that_files_only_seem_to_share_are_compared() -> None:
    """Some network file systems give each file the same number in a listing."""
    Path("root").mkdir()
    for name in "abc":
        Path(f"root/{name}.png").write_bytes(b"")
    found = list_images("root")
    assert linked_images(found._replace(inodes=found.inodes * 0)) == []


def test_no_file_is_looked_at_when_a_folder_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of 400,000 images is listed as fast as its folders are read."""
    Path("root/a").mkdir(parents=True)
    for i in range(20):
        Path("root", "a", f"{i}.png").write_bytes(b"")
    asked: list[str] = []
    stat = os.stat

    def noted(path: str, **more: Any) -> os.stat_result:
        asked.append(str(path))
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", noted)
    found = list_images("root")
    monkeypatch.undo()
    assert len(found.images) == 20
    assert not [path for path in asked if path.endswith(".png")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("valid", "val"),
        ("Validation", "val"),
        ("VAL", "val"),
        ("dev_set", "val"),
        ("Train", "train"),
        ("training-data", "train"),
        ("test_images", "test"),
        ("Tests", "test"),
        ("train", None),
        ("value", None),
        ("cat", None),
    ],
)
def test_names_that_are_nearly_those_of_splits(name: str, split: str | None) -> None:
    assert nearly(name) == split
