"""Images with the channels and the depth of their files: what is read, and what is refused."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, resize

from engine import modules
from engine.data import stored
from engine.data.cache import CachedImages, use_cache
from engine.data.images import read_image
from engine.data.stored import Form, by_channel, facts, read_stored, stored_size
from engine.errors import BadInput
from engine.report.grids import as_rgb
from engine.weights import adapt_channels

RANDOM = np.random.default_rng(0)
ALL = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # each level of a camera of 12 bits


def values(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 65536, shape).astype(np.uint16)


def write_png(path: str, array: np.ndarray) -> None:
    """A PNG of 16 bits from (H, W, C), whose rows have the five filters of PNG in turn."""
    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    step, content = 2 * channels, b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        above = rows[y - 1] if y else np.zeros_like(row)
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        guess = left + above - corner
        far = [abs(guess - one) for one in (left, above, corner)]
        paeth = np.where(far[0] <= np.minimum(far[1], far[2]), left, corner)
        paeth = np.where((far[1] < far[0]) & (far[1] <= far[2]), above, paeth)
        guesses = [0 * row, left, above, (left + above) // 2, paeth]
        content += bytes([y % 5]) + ((row - guesses[y % 5]) % 256).astype(np.uint8).tobytes()
    head = struct.pack(">2I5B", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    for name, part in parts:
        checksum = zlib.crc32(name + part)
        file += struct.pack(">I", len(part)) + name + part + struct.pack(">I", checksum)
    Path(path).write_bytes(file)


def check(path: str, expected: np.ndarray, axes: str | None = None) -> None:
    """Whether a file is read as (C, H, W) with these values, and its size is known."""
    found = read_stored(path, axes)
    assert found.shape == expected.shape
    assert str(found.dtype).endswith(expected.dtype.name)
    assert (found.numpy() == expected).all()
    assert stored_size(path, axes) == (expected.shape[2], expected.shape[1])


def test_every_level_of_twelve_bits_is_kept_without_tifffile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored, "_tifffile", lambda: None)
    for path in ("x.png", "x.tif"):
        Image.fromarray(ALL).save(path)
        check(path, ALL[None])
    Image.fromarray(ALL.astype(np.float32) / 4095).save("f.tif")
    check("f.tif", ALL[None].astype(np.float32) / 4095)
    np.save("x.npy", ALL)
    check("x.npy", ALL[None])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_sixteen_bits_keeps_all_of_them(channels: int) -> None:
    array = values(11, 7, channels)
    write_png("x.png", array)
    check("x.png", array.transpose(2, 0, 1))


def test_eight_bits_are_kept_as_grey_colour_and_alpha() -> None:
    for mode, channels in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)):
        array = values(5, 6, channels).astype(np.uint8)
        Image.fromarray(array[..., 0] if channels == 1 else array).save("x.png")
        check("x.png", array.transpose(2, 0, 1))
        Image.open("x.png").convert("P" if mode in ("L", "RGB") else mode).save("p.png")
    Image.fromarray(values(5, 6).astype(np.uint8)).convert("P").save("p.png")
    assert read_stored("p.png").shape == (3, 5, 6), "a palette is colours"


KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any], str]] = {
    "pages": ((5, 40, 50), {"photometric": "minisblack", "metadata": None}, "CYX"),
    "named": ((5, 40, 50), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "CYX"),
    "OME": ((5, 40, 50), {"ome": True, "metadata": {"axes": "CYX"}}, "CYX"),
    "big": ((5, 40, 50), {"bigtiff": True, "photometric": "minisblack"}, "CYX"),
    "colour": ((40, 50, 3), {"photometric": "rgb"}, "YXC"),
    "planes": ((3, 40, 50), {"photometric": "rgb", "planarconfig": "separate"}, "CYX"),
    "packed": ((40, 50, 3), {"photometric": "rgb", "compression": "zlib", "tile": (16, 16)}, "YXC"),
    "samples": ((40, 50, 6), {"photometric": "minisblack", "planarconfig": "contig"}, "YXC"),
    "other order": ((40, 50), {"byteorder": ">"}, "YX"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pages_planes_and_channels_of_a_tiff(kind: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    shape, how, axes = KINDS[kind]
    array = values(*shape)
    tifffile.imwrite("x.tif", array, **how)
    expected = array[None] if axes == "YX" else array if axes == "CYX" else array.transpose(2, 0, 1)
    check("x.tif", expected)


def test_axes_that_are_ambiguous_are_refused_unless_they_are_named() -> None:
    tifffile = pytest.importorskip("tifffile")
    stack, small = values(2, 3, 40, 50), values(5, 28, 28)
    tifffile.imwrite("x.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    tifffile.imwrite("y.tif", small, photometric="minisblack")
    np.save("y.npy", small)
    for path, what in (("x.tif", r"ZCYX \(2 x 3 x 40 x 50\)"), ("y.tif", "QYX"), ("y.npy", "5 x")):
        with pytest.raises(BadInput, match=f"^{path}: its axes, {what}.*name them by --axes"):
            read_stored(path)
    check("x.tif", stack.reshape(6, 40, 50), axes="ZCYX")
    check("y.tif", small, axes="CYX")
    check("y.npy", small.transpose(2, 0, 1), axes="YXC")
    with pytest.raises(BadInput, match="--axes YX names 2 axes, and it has 5 x 28 x 28"):
        read_stored("y.npy", "YX")
    tifffile.imwrite("z.tif", values(40, 36, 50), photometric="minisblack", metadata=None)
    with pytest.raises(BadInput, match="40 channels, and at most 32"):
        read_stored("z.tif")


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_tiff_is_turned_upright_whoever_reads_it(turned: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    array, tag = values(3, 5, 3).astype(np.uint8), [(274, 3, 1, turned, True)]
    tifffile.imwrite("8.tif", array, photometric="rgb", extratags=tag)
    tifffile.imwrite("16.tif", array.astype(np.uint16), photometric="rgb", extratags=tag)
    tifffile.imwrite("grey.tif", array[..., 0].copy(), extratags=tag)
    expected = pil_to_tensor(read_image("8.tif")).numpy()
    check("8.tif", expected)
    check("16.tif", expected.astype(np.uint16))
    check("grey.tif", expected[:1])


def test_what_cannot_be_kept_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = np.zeros((3, 40, 50), np.float32)
    broken[1, 2, 3], broken[2, 0, 0] = np.nan, np.inf
    Image.fromarray(ALL).save("x.png")
    three = Image.new("L", (3, 3))
    three.save("pages.tif", save_all=True, append_images=[three])
    for name, array in (("nan", broken), ("wide", ALL.astype(np.int32))):
        np.save(f"{name}.npy", array)
    Image.fromarray(ALL).save("x.jp2")
    refused = {
        "nan.npy": "NaN or infinite in channel 2, 3; replace",
        "wide.npy": "its values are int32, which float32 would round",
        "x.jp2": "more than 8 bits are read of PNG, TIFF and .npy",
        "pages.tif": "which tifffile reads: python -m pip install tifffile",
    }
    monkeypatch.setattr(stored, "_tifffile", lambda: None)
    for path, reason in refused.items():
        with pytest.raises(BadInput, match=f"^{path}: .*{reason}") as error:
            read_stored(path)
        assert "\n" not in str(error.value)
    like = Form(3, "uint8", "a.png")
    with pytest.raises(BadInput, match=r"^x.png: has 1 channel of uint16, and a.png 3 channels of"):
        read_stored("x.png", like=like)


@pytest.mark.parametrize("path", ["x.png", "pages.tif", "f.tif", "five.tif"])
def test_what_is_refused_as_rgb_names_the_option(path: str) -> None:
    five = {"five.tif": values(5, 40, 50)}.get(path)
    if five is not None:
        pytest.importorskip("tifffile").imwrite(path, five, photometric="minisblack")
    else:
        grey = Image.fromarray(ALL.astype(np.float32) if path == "f.tif" else ALL)
        grey.save(path, save_all=path == "pages.tif", append_images=[grey])
    with pytest.raises(BadInput, match=f"^{path}: .*, or keep all of it with --images stored$"):
        read_image(path)


def test_resizing_each_channel_gives_the_bits_of_rgb() -> None:
    photo = Image.fromarray(values(60, 80, 3).astype(np.uint8))
    expected = pil_to_tensor(resize(photo, [17, 23]))
    assert by_channel(pil_to_tensor(photo), lambda image: resize(image, [17, 23])).equal(expected)


def read_from(path: str) -> torch.Tensor:
    return read_stored(path)


def test_statistics_are_exact_and_those_of_the_files_with_and_without_a_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("train").mkdir()
    arrays = [values(3, 40, 50) // 3 + 1000 * np.arange(3)[:, None, None] for _ in range(5)]
    for i, array in enumerate(arrays):
        array[2] = 7
        np.save(f"train/{i}.npy", array.astype(np.uint16))
    rows, form = torch.tensor([0, 2, 3, 3]), Form(3, "uint16")
    files = [f"{i}.npy" for i in range(5)]
    images = CachedImages(Path("train"), files, read_from, "test")
    before = facts(images, rows, form)
    assert "channel 3 is 7 in all training images" in capsys.readouterr().err
    use_cache([Holder(images)], "on", 2, torch.device("cpu"))
    assert images.mapped is not None and images.mapped.values.dtype == torch.uint16
    assert facts(images, rows, form) == before
    chosen = np.stack([arrays[i] for i in (0, 2, 3)]).astype(float)
    for i in range(2):
        name = f"channel {i + 1}"
        assert before["mean"][name] == pytest.approx(chosen[:, i].mean(), rel=1e-6)
        assert before["std"][name] == pytest.approx(chosen[:, i].std(), rel=1e-6)
    assert before["std"]["channel 3"] == 1, "a constant is divided by nothing"
    batch = images.stack(torch.tensor([4, 1]))
    assert batch is not None and (batch.numpy() == np.stack([arrays[4], arrays[1]])).all()


class Holder:
    """A data set, as far as use_cache looks at it."""

    def __init__(self, images: CachedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)


def test_sums_of_more_than_64_bits_are_exact() -> None:
    sums = torch.full((3, 2, 1), 2**62, dtype=torch.int64)
    sums[:, 1] += 5
    means, _ = stored.mean_and_std(sums, 2**40)
    assert means == [float(f"{3 * 2**62 / 2**40:.7g}")]


def test_the_first_convolution_sees_every_level_in_bf16() -> None:
    first, second = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    network = nn.Sequential(first, second)
    for conv in (first, second):
        nn.init.ones_(conv.weight)
    levels = (torch.arange(4096.0) / 4095 * 2 - 1).view(1, 1, 64, 64)

    def seen() -> int:
        with torch.autocast("cpu", torch.bfloat16):
            return len(first(levels).unique())

    keys = [*network.state_dict()]
    assert seen() < 2000
    modules.in_float32(network)
    assert seen() == 4096
    assert [*network.state_dict()] == keys
    with torch.autocast("cpu", torch.bfloat16):
        assert network(levels).dtype == torch.bfloat16, "the others are left as they are"


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8])
def test_weights_for_rgb_are_adapted_as_timm_does(channels: int) -> None:
    adapt = pytest.importorskip("timm.models").adapt_input_conv
    weight = torch.randn(8, 3, 3, 3)
    assert adapt_channels(weight, channels).allclose(adapt(channels, weight))


def test_pictures_show_the_percentiles_of_the_first_three_channels() -> None:
    deep = torch.from_numpy(values(2, 5, 30, 40) // 16).float()
    deep[:, :, 0, 0] = 60_000  # a hot pixel
    shown = as_rgb(deep)
    assert shown.shape == (2, 3, 30, 40)
    assert shown.min() == 0 and shown.max() == 255 and 100 < shown.median() < 155
    assert as_rgb(deep[0, :1]).unique(dim=0).shape == (1, 30, 40), "grey"
    plain = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    assert as_rgb(plain).equal(plain)
