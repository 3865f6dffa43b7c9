"""What a sample is: which files are images, and how they become tensors."""

import json
import os
import pickle
import shutil
from argparse import Namespace
from pathlib import Path

import example
import numpy as np
import pytest
import torch
from conftest import Train
from PIL import Image
from programs import same_weights
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

import data
import images as image_files
from engine.cache import use_cache
from engine.errors import BadInput
from engine.order import SeededDataset
from images import ImageFiles, read_facts, read_image

TRAIN_FILES, TEST_FILES = (
    "64674ace034b49f2",
    "cf9f00dae40e4b72",
)  # checksums of the names of the digits
ABOUT = {"classes": dict.fromkeys(example.CLASSES, 8)}
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def opt(folder: Path | str, **changes: object) -> Namespace:
    return Namespace(**{"data": str(folder), "img_size": 16, "flip": True, "shift": 0, **changes})


def colour(name: str, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    pixel = read_image(name).getpixel(at)
    assert isinstance(pixel, tuple)
    return pixel


def test_samples_are_bytes_with_a_label(images: Path) -> None:
    part = data.train_part(opt(images, img_size=20))
    image, label = part[0]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 20, 20))
    assert (label.dtype, label.item()) == (torch.int64, 0)
    assert part.classes == list(example.CLASSES)
    assert part.about == ABOUT
    assert [int(part[i][1]) for i in range(24)] == [0] * 8 + [1] * 8 + [2] * 8


def test_a_size_that_fits_leaves_the_pixels_alone(images: Path) -> None:
    part = data.test_part(opt(images), ABOUT)
    file = np.asarray(Image.open(part.root / part.files[5]))
    assert part[5][0].numpy().transpose(1, 2, 0).tolist() == file.tolist()


def test_hidden_files_and_folders_are_ignored(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(images, tmp_path / "copy")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "train/disc/0.png", folder / "train/.ipynb_checkpoints/0.png")
    (folder / "train" / "disc" / "._0.png").write_text("what macOS leaves on a stick")
    (folder / "train" / "disc" / ".DS_Store").write_text("")
    assert len(data.train_part(opt(folder))) == 24
    assert capsys.readouterr().err == ""


def test_hidden_folders_inside_a_class_are_ignored(images: Path, tmp_path: Path) -> None:
    """Jupyter puts a copy of what it opens into .ipynb_checkpoints."""
    folder = shutil.copytree(images, tmp_path / "copy")
    hidden = folder / "train" / "disc" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(folder / "train/disc/0.png", hidden / "0-checkpoint.png")
    assert len(data.train_part(opt(folder))) == 24
    assert len(ImageFiles([str(folder / "train")], lambda path: torch.empty(0))) == 24


def test_files_that_are_no_images_are_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(images, tmp_path / "copy")
    (folder / "train" / "disc" / "notes.txt").write_text("")
    assert len(data.train_part(opt(folder))) == 24
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "notes.txt" in warning


def test_subfolders_and_capital_endings_count(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "copy")
    (folder / "train" / "disc" / "more").mkdir()
    shutil.copy(folder / "train/disc/0.png", folder / "train/disc/more/X.PNG")
    assert data.train_part(opt(folder)).about["classes"]["disc"] == 9


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_any_file_name_will_do(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "copy")
    names = ["Löwe 100%.png", "new\nline.png", os.fsdecode(b"latin\xe9.png")]
    for name in names:
        shutil.copy(folder / "train/disc/0.png", folder / "train" / "disc" / name)
    part = data.train_part(opt(folder))
    assert part.fingerprint() != data.train_part(opt(images)).fingerprint()
    assert len([part[i] for i in range(len(part))]) == 27


def test_the_fingerprint_is_of_the_names_alone(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "elsewhere")
    before = data.train_part(opt(images)).fingerprint()
    assert data.train_part(opt(folder)).fingerprint() == before
    (folder / "train" / "disc" / "0.png").rename(folder / "train" / "disc" / "zero.png")
    assert data.train_part(opt(folder)).fingerprint() != before


def test_cameras_note_which_side_is_up() -> None:
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright: left becomes top
    image.save("x.png", exif=exif)
    assert read_image("x.png").size == (10, 20)
    assert colour("x.png", (5, 2)) == BLUE
    assert colour("x.png", (5, 17)) == RED


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save("x.png")
    assert [colour("x.png", (i, 0)) for i in range(3)] == [(v, v, v) for v in (0, 100, 255)]


def test_transparency_is_shown_on_white() -> None:
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


def test_grey_with_transparency() -> None:
    Image.new("LA", (1, 1), (50, 0)).save("x.png")
    assert colour("x.png") == WHITE


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


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"a text"])
def test_what_cannot_be_read_is_named(content: bytes) -> None:
    Path("x.png").write_bytes(content)
    with pytest.raises(BadInput, match=r"x\.png: not readable"):
        read_image("x.png")


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what is odd but not fatal
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tiff", "x.webp", "x.bmp", "x.ppm"])
def test_damage_of_any_kind_is_told_by_the_name_of_the_file(name: str) -> None:
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
def test_damaged_notes_of_a_camera_are_told_by_the_name_of_the_file() -> None:
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


def augmented(*batch: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    return data.augment(opt("", **options), torch.Generator().manual_seed(0), *batch)


def test_training_images_are_mirrored_and_moved_if_wanted(images: Path) -> None:
    batch = default_collate([data.train_part(opt(images))[i] for i in range(24)])
    still, labels = augmented(*batch, flip=False)
    assert still.equal(batch[0])
    assert labels.equal(batch[1])
    mirrored, labels = augmented(*batch, flip=True)
    assert labels.equal(batch[1])
    pairs = list(zip(mirrored, still, strict=True))
    whether = [changed.equal(image.flip(-1)) for changed, image in pairs]
    assert 4 < sum(whether) < 20
    assert all(
        changed.equal(image) for changed, image in pairs if not changed.equal(image.flip(-1))
    )
    moved, labels = augmented(*batch, flip=False, shift=3)
    assert labels.equal(batch[1])
    assert moved.shape == still.shape
    assert sum(not a.equal(b) for a, b in zip(moved, still, strict=True)) > 20
    assert not augmented(*batch, flip=True, shift=3)[0].equal(moved)


def change_each_image(options: Namespace) -> list[v2.Transform]:
    return [
        v2.RandomResizedCrop(options.img_size, antialias=True),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.RandomHorizontalFlip(),
    ]


@pytest.fixture(scope="module")
def jittered(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images are changed by transforms of torchvision, each by itself."""
    run = tmp_path_factory.mktemp("jittered") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "random_transforms", change_each_image)
        assert train(run) == 0
    return run


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_any_transform_is_exact(
    train: Train,
    jittered: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    workers: int,
) -> None:
    monkeypatch.setattr(data, "random_transforms", change_each_image)
    assert train("run", cache, f"--workers={workers}") == 0
    assert same_weights(Path("run"), jittered)
    assert not same_weights(Path("run"), finished)


def test_random_transforms_are_for_training_alone(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [data.test_part(opt(images), ABOUT)[i][0] for i in range(12)]
    unchanged = [data.train_part(opt(images))[i][0] for i in range(12)]
    monkeypatch.setattr(data, "random_transforms", change_each_image)
    test, train = data.test_part(opt(images), ABOUT), data.train_part(opt(images))
    assert all(test[i][0].equal(plain[i]) for i in range(12))
    assert not any(train[i][0].equal(unchanged[i]) for i in range(12))


def test_the_cache_follows_the_size_and_the_code(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {data.train_part(opt(images)).cache_file().name}
    names.add(data.train_part(opt(images, img_size=17)).cache_file().name)
    names.add(data.train_part(opt(images, flip=False, shift=2)).cache_file().name)  # later on
    for module in (data, image_files):
        edited = Path(f"{module.__name__}.py")
        edited.write_text(Path(str(module.__file__)).read_text() + "# edited\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(edited))
            names.add(data.train_part(opt(images)).cache_file().name)
    assert len(names) == 4


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_data_sets_can_be_sent_to_workers(
    images: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool, random: bool
) -> None:
    if random:
        monkeypatch.setattr(data, "random_transforms", change_each_image)
    part = data.train_part(opt(images))
    use_cache([part], wanted, 2, torch.device("cpu"))
    received = pickle.loads(pickle.dumps(part))
    samples = []
    for dataset in (part, received):
        samples += SeededDataset(dataset).__getitems__([(3, 7), (20, 8)])
    assert samples[0].equal(samples[2])
    assert samples[1].equal(samples[3])
    assert (part.batch([0]) is None) == (random or not wanted)


def test_images_are_not_decoded_again_in_a_second_run(
    train: Train, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(images, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))
    assert train("first", f"--data={folder}") == 0
    read: list[str] = []
    read_all = data.read_image

    def note(path: str, least: tuple[int, int]) -> Image.Image:
        read.append(path)
        return read_all(path, least)

    monkeypatch.setattr(data, "read_image", note)
    assert train("second", f"--data={folder}") == 0
    assert len(read) == 1  # the one that summarize shows the networks
    assert same_weights(Path("first"), Path("second"))


def test_a_data_set_may_say_that_mirroring_changes_it(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "copy")
    assert read_facts(folder) == {}
    (folder / "dataset.json").write_text(json.dumps({"flip": False}))
    assert read_facts(folder) == {"flip": False}


def test_the_images_that_come_with_the_project() -> None:
    folder = data.folder(data.BUILT_IN)
    assert folder == Path("data/digits")
    train = data.train_part(opt(data.BUILT_IN))
    test = data.test_part(opt(data.BUILT_IN), train.about)
    assert train.classes == [str(digit) for digit in range(10)]
    assert len(train) + len(test) == 1797
    assert 0.19 < len(test) / 1797 < 0.21
    assert read_facts(folder)["flip"] is False
    assert "CC BY" in read_facts(folder)["licence"]
    # The split is fixed: these are the files it has had from the first day.
    assert (train.fingerprint(), test.fingerprint()) == (TRAIN_FILES, TEST_FILES)
    assert not list(Path("data").glob(".*"))


def test_no_digit_is_in_both_parts() -> None:
    folder = data.folder(data.BUILT_IN)
    pixels = [
        {Image.open(path).tobytes() for path in (folder / part).rglob("*.png")}
        for part in ("train", "test")
    ]
    assert not pixels[0] & pixels[1]


def test_unpacked_digits_are_left_as_they_are() -> None:
    folder = data.folder(data.BUILT_IN)
    (folder / "train" / "0" / "mine.png").write_bytes(b"")
    data.unpack_digits(folder)  # as a second run does that started at the same time
    assert (folder / "train" / "0" / "mine.png").exists()
    assert not list(Path("data").glob(".*"))
