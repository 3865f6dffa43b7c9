"""What a sample is: crops of pairs in each layout, and what is done to photographs."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import example
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import data
import options
from degrade import DEGRADATIONS, degrade
from engine.cache import use_cache
from engine.errors import BadInput
from engine.order import SeededDataset
from images import image_size, read_image


def opt(folder: Path | str, *words: str) -> Namespace:
    return options.parse([f"--data={folder}", "--img-size=16", "--flip", *words])


def pixels(path: Path) -> Tensor:
    return v2.functional.pil_to_tensor(read_image(path))


def contains(image: Tensor, crop: Tensor) -> bool:
    """Whether a crop is somewhere in an image."""
    windows = image.unfold(1, crop.shape[1], 1).unfold(2, crop.shape[2], 1)
    return bool((windows == crop[:, None, None]).all(dim=4).all(dim=3).all(dim=0).any())


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    example.make_pairs(tmp_path / "pairs")
    return tmp_path / "pairs"


@pytest.fixture
def side_by_side(pairs: Path, tmp_path: Path) -> Path:
    """The same pairs, each in one image."""
    folder = tmp_path / "joined"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for path in (pairs / part / "A").iterdir():
            both = [np.asarray(Image.open(pairs / part / side / path.name)) for side in "AB"]
            Image.fromarray(np.hstack(both)).save(folder / part / path.name)
    return folder


def test_a_sample_of_photographs_is_a_degraded_and_an_undegraded_crop(images: Path) -> None:
    part = data.train_part(opt(images))
    inputs, target = SeededDataset(part)[3, 7]
    for image in (inputs, target):
        assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 16))
    assert contains(pixels(images / "train" / part.files[3]), target)
    assert not inputs.equal(target)


@pytest.mark.parametrize("layout", ["folders", "side by side", "side by side, says the data"])
def test_both_images_of_a_pair_have_the_same_crop(
    pairs: Path, side_by_side: Path, layout: str
) -> None:
    folder = pairs if layout == "folders" else side_by_side
    words = ["--side-by-side"] if layout == "side by side" else []
    if layout == "side by side, says the data":
        (folder / "dataset.json").write_text('{"pairs": "side-by-side"}')
    for part in (data.train_part(opt(folder, *words)), data.test_part(opt(folder, *words), {})):
        for index in range(0, len(part), 5):
            inputs, target = SeededDataset(part)[index, index]
            assert inputs.shape == target.shape == (3, 16, 16)
            assert target.equal(255 - inputs)
    assert data.whole_part(opt(folder, *words))[2][0].equal(pixels(pairs / "test/A/2.png"))


def test_crops_depend_on_the_seed_of_the_sample_alone(images: Path) -> None:
    part = SeededDataset(data.train_part(opt(images)))
    first = [part[i, i] for i in range(20)]
    torch.manual_seed(5)
    again = [part[i, i] for i in reversed(range(20))][::-1]
    assert all(a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in zip(first, again, strict=True))
    others = [part[i, i + 1] for i in range(20)]
    assert sum(a[1].equal(b[1]) for a, b in zip(first, others, strict=True)) < 5


def test_an_epoch_has_about_a_thousand_samples(images: Path) -> None:
    assert len(data.train_part(opt(images))) == 8 * 125
    assert len(data.train_part(opt(images, "--crops=3"))) == 24


def test_the_grid_covers_test_images_without_overlap(images: Path) -> None:
    part = data.test_part(opt(images), {})
    assert len(part) == 4 * 3
    for i in range(4):
        whole = pixels(images / "test" / part.files[i])
        crops = [part[3 * i + k][1] for k in range(3)]
        assert torch.cat(crops, dim=2).equal(whole[:, :16, :48])


def test_the_test_part_is_the_same_each_time(images: Path) -> None:
    one, two = (SeededDataset(data.test_part(opt(images), {})) for _ in range(2))
    for key in ((0, 0), (7, 7)):
        assert one[key][0].equal(two[key][0])


def test_whole_images_are_of_any_size(images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "copy"))
    Image.new("RGB", (33, 70), "red").save(folder / "test" / "tall.png")
    part = data.whole_part(opt(folder))
    assert {tuple(part[i][0].shape) for i in range(len(part))} == {(3, 20, 52), (3, 70, 33)}
    assert part.names() == ["0.png", "1.png", "2.png", "3.png", "tall.png"]


def test_the_cache_changes_nothing(pairs: Path, images: Path) -> None:
    for folder in (pairs, images):
        parts = [data.train_part(opt(folder)) for _ in range(2)]
        use_cache(parts[:1], True, 2, torch.device("cpu"))
        assert parts[0].store is not None
        with_cache, without = map(SeededDataset, parts)
        for i in range(10):
            assert all(a.equal(b) for a, b in zip(with_cache[i, i], without[i, i], strict=True))


def test_a_changed_target_makes_the_cache_anew(pairs: Path) -> None:
    before = data.train_part(opt(pairs)).cache_file()
    Image.new("RGB", (52, 20)).save(pairs / "train" / "B" / "5.png")
    assert data.train_part(opt(pairs)).cache_file() != before


def test_pairs_are_mirrored_together() -> None:
    inputs = torch.randint(256, (64, 3, 4, 4), dtype=torch.uint8)
    random = torch.Generator().manual_seed(0)
    settings = Namespace(flip=True)
    flipped, targets = data.augment(settings, random, inputs, 255 - inputs)
    assert targets.equal(255 - flipped)
    mirrored = [a.equal(b.flip(2)) for a, b in zip(flipped, inputs, strict=True)]
    same = [a.equal(b) for a, b in zip(flipped, inputs, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 10 < sum(mirrored) < 54
    settings.flip = False
    assert data.augment(settings, random, inputs, inputs)[0].equal(inputs)


def test_subfolders_and_hidden_files(pairs: Path) -> None:
    for side in "AB":
        (pairs / "train" / side / "more").mkdir()
        shutil.copy(pairs / "train" / side / "0.png", pairs / "train" / side / "more" / "0.png")
    (pairs / "train" / "A" / "._0.png").write_text("what macOS leaves on a stick")
    assert data.train_part(opt(pairs, "--crops=1")).names()[-1] == "more/0.png"


def test_files_that_are_no_images_are_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "copy"))
    (folder / "train" / "notes.txt").write_text("")
    data.train_part(opt(folder))
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "notes.txt" in warning


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_an_image_is_the_one_it_is_read_with(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 10)).save("x.jpg", exif=exif)
    assert image_size("x.jpg") == read_image("x.jpg").size


def test_the_built_in_photographs() -> None:
    root = Path(data.__file__).parent / data.BUILT_IN
    settings = opt(root, "--img-size=64", "--no-flip")
    assert data.train_part(settings).count == 12
    names = ["cat.jpg", "dogs.jpg", "mountains.jpg", "pagoda.jpg"]
    assert data.whole_part(settings).names() == names
    sizes = sum(path.stat().st_size for path in root.rglob("*.jpg"))
    assert sizes < 300_000


# What is done to photographs.


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations_keep_shape_and_type(name: str) -> None:
    settings = opt("data/photos", "--noise=80")
    for height, width in ((16, 16), (21, 33)):
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        changed = degrade(image, name, settings)
        assert (changed.dtype, changed.shape) == (torch.uint8, image.shape)
        assert not changed.equal(image)


def test_noise_has_its_standard_deviation_and_is_cut_off() -> None:
    image = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    noisy = degrade(image, "noise", opt("data/photos", "--noise=10")).float()
    assert noisy.std().item() == pytest.approx(10, rel=0.05)
    assert noisy.mean().item() == pytest.approx(128, abs=0.5)
    assert degrade(image, "noise", opt("data/photos", "--noise=0")).equal(image)
    white = degrade(image + 127, "noise", opt("data/photos", "--noise=10"))
    assert white.max() == 255 and white.float().mean() > 240, "255 + 1 is not 0"


def test_grey_has_three_equal_channels() -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 200, 200]])
    image = colours.T[:, None].to(torch.uint8)
    grey = degrade(image, "grey", opt("data/photos"))
    assert grey[:, 0].T.tolist() == [[76] * 3, [150] * 3, [29] * 3, [200] * 3]


def test_low_resolution_keeps_what_is_smooth_and_loses_what_is_fine() -> None:
    smooth = torch.arange(64).mul(3).expand(3, 64, 64).to(torch.uint8)
    fine = torch.tensor([0, 255]).repeat(32).expand(3, 64, 64).to(torch.uint8)
    settings = opt("data/photos", "--scale=4")
    kept = degrade(smooth, "low-resolution", settings).float()
    assert (kept - smooth.float()).abs()[:, :, 4:-4].max() <= 2
    lost = degrade(fine, "low-resolution", settings).float()
    assert lost.std() < 10


def test_edges_are_dark_where_the_brightness_changes() -> None:
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, :, 8:] = 200
    drawn = degrade(image, "edges", opt("data/photos"))
    assert (drawn[:, :, :7] == 255).all() and (drawn[:, :, 9:] == 255).all()
    assert (drawn[:, :, 7:9] == 55).all()


# What cannot be used.


def test_pairs_that_do_not_fit(pairs: Path) -> None:
    Image.new("RGB", (52, 21)).save(pairs / "train" / "B" / "3.png")
    with pytest.raises(BadInput, match=r"A/3\.png has 52 x 20 .*B/3\.png 52 x 21.*of one size"):
        data.train_part(opt(pairs))
    (pairs / "train" / "B" / "3.png").rename(pairs / "train" / "B" / "three.png")
    with pytest.raises(BadInput, match=r"train: without the other.*A/3\.png, B/three\.png"):
        data.train_part(opt(pairs))


def test_options_that_do_not_go_with_the_layout(pairs: Path, side_by_side: Path) -> None:
    with pytest.raises(BadInput, match=r"--degrade grey: .*has pairs already"):
        data.train_part(opt(pairs, "--degrade=grey"))
    with pytest.raises(BadInput, match="choose one"):
        data.train_part(opt(pairs, "--side-by-side"))
    (side_by_side / "dataset.json").write_text(json.dumps({"pairs": "stacked"}))
    with pytest.raises(BadInput, match=r"dataset\.json"):
        data.train_part(opt(side_by_side))
    Image.new("RGB", (103, 20)).save(side_by_side / "train" / "odd.png")
    (side_by_side / "dataset.json").unlink()
    with pytest.raises(BadInput, match=r"odd\.png: 103 pixels wide"):
        data.train_part(opt(side_by_side, "--side-by-side"))
