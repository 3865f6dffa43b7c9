"""Reading and listing images, dividing them by hash, and the serialized list of their names."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data.files import SerializedList, images_below, read_dataset_json, split_by_hash
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
        with pytest.raises(BadInput, match=r"^dataset\.json: unknown: '.*'; known: flip, name"):
            read_dataset_json(Path())


NAMES = [f"{group}/{i:04d}.jpg" for group in "ab" for i in range(1000)]
GROUPS = [0] * 1000 + [1] * 1000


def test_about_the_share_of_each_group_is_chosen() -> None:
    for share in (0.1, 0.5):
        chosen = np.array(split_by_hash(NAMES, GROUPS, share)).reshape(2, 1000)
        assert abs(chosen.mean(axis=1) - share).max() < 0.05


def test_new_names_move_no_old_one() -> None:
    few = list(range(0, 2000, 3))
    before = split_by_hash([NAMES[i] for i in few], [GROUPS[i] for i in few], 0.1)
    after = split_by_hash(NAMES, GROUPS, 0.1)
    assert [after[i] for i in few] == before
    order = list(reversed(range(2000)))  # nor does their order matter
    assert split_by_hash([NAMES[i] for i in order], [0] * 2000, 0.1) == after[::-1]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.9, 0.999])
def test_each_group_is_divided(share: float) -> None:
    for start in range(0, 1000, 2):
        first, second = split_by_hash(NAMES[start : start + 2], [7, 7], share)
        assert first != second
    for start in range(0, 1000, 5):
        chosen = split_by_hash(NAMES[start : start + 5], [3] * 5, share)
        assert 0 < sum(chosen) < 5


def test_the_choice_is_the_same_on_every_machine() -> None:
    chosen = split_by_hash(NAMES[:50], [0] * 50, 0.1)
    assert [i for i in range(50) if chosen[i]] == [11, 18, 33, 36, 48]
    assert sum(split_by_hash(["\udce9.jpg", "猫.jpg"], [0, 0], 0.5)) == 1
