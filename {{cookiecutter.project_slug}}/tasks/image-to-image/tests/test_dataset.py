"""What a sample is: crops of pairs in each layout, their splits, degradations of photographs."""

import json
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import example
import numpy as np
import pytest
import torch
from conftest import Train
from needs import needs
from PIL import Image
from programs import points, same_weights
from torch import Tensor
from torchvision.transforms import v2

import dataset
import options
from engine.data.cache import use_cache
from engine.data.images import image_size, read_image
from engine.data.sampler import SeededDataset, seed_sample
from engine.errors import BadInput

Pairs = needs("dataset.Pairs")
degrade = needs("dataset.degrade")
LAYOUTS = ("photographs", "folders", "side-by-side")


def opt(folder: Path | str, *words: str) -> Namespace:
    return options.parse([f"--data={folder}", "--img-size=16", "--flip", *words])


def whole(folder: Path, *words: str, split: str = "train") -> Any:
    """All pairs of a split, none set aside."""
    return Pairs(folder / split, opt(folder, *words))


def crops(folder: Path, *words: str) -> Any:
    """All pairs of train/ in random crops."""
    return whole(folder, *words).random_crops()


def grid(folder: Path, *words: str) -> Any:
    """All pairs of test/ in a grid of crops."""
    return whole(folder, *words, split="test").grid_of_crops()


def pixels(path: Path) -> Tensor:
    return v2.functional.pil_to_tensor(read_image(path))


def contains(image: Tensor, crop: Tensor) -> bool:
    """Whether a crop is somewhere in an image."""
    windows = image.unfold(1, crop.shape[1], 1).unfold(2, crop.shape[2], 1)
    return bool((windows == crop[:, None, None]).all(dim=4).all(dim=3).all(dim=0).any())


def samples_by_key(samples: Any, keys: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
    """Samples by index and seed, in this order."""
    seeded = SeededDataset(samples)
    batches = [(torch.tensor([index]), torch.tensor([seed])) for index, seed in keys]
    found = [seeded.__getitems__(batch) for batch in batches]
    return [(inputs[0], target[0]) for inputs, target in found]


@pytest.fixture
def photographs(images: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, to be changed."""
    ignore = shutil.ignore_patterns(".cache")
    return Path(shutil.copytree(images, tmp_path / "photographs", ignore=ignore))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    example.make_pairs(tmp_path / "pairs")
    return tmp_path / "pairs"


@pytest.fixture
def side_by_side(pairs: Path, tmp_path: Path) -> Path:
    """The same pairs, each in one image."""
    folder = tmp_path / "joined"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for path in (pairs / split / "A").iterdir():
            both = [np.asarray(Image.open(pairs / split / side / path.name)) for side in "AB"]
            Image.fromarray(np.hstack(both)).save(folder / split / path.name)
    (folder / "dataset.json").write_text('{"pairs": "side-by-side"}')
    return folder


@pytest.fixture
def folder(layout: str, request: pytest.FixtureRequest) -> Path:
    """A data set of eight pairs to train on and four to test on, in the layout of the test."""
    fixtures = {"folders": "pairs", "side-by-side": "side_by_side"}
    return request.getfixturevalue(fixtures.get(layout, layout))


# Samples.


def test_a_sample_of_photographs_is_a_degraded_and_an_undegraded_crop(images: Path) -> None:
    samples = crops(images)
    ((inputs, target),) = samples_by_key(samples, [(3, 7)])
    for image in (inputs, target):
        assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 16))
    assert contains(pixels(images / "train" / samples.names()[3]), target)
    assert not inputs.equal(target)


@pytest.mark.parametrize("layout", ["folders", "side by side", "side by side, says the data"])
def test_both_images_of_a_pair_have_the_same_crop(
    pairs: Path, side_by_side: Path, layout: str
) -> None:
    folder = pairs if layout == "folders" else side_by_side
    words = ["--side-by-side"] if layout == "side by side" else []
    if layout == "side by side":
        (folder / "dataset.json").unlink()
    for samples in (crops(folder, *words), grid(folder, *words)):
        for index in range(0, len(samples), 5):
            inputs, target = samples[index]
            assert inputs.shape == target.shape == (3, 16, 16)
            assert target.equal(255 - inputs)
    image = dataset.eval_set(opt(folder, *words), {}, "test")[2][0]
    assert image.equal(pixels(pairs / "test/A/2.png"))


def test_crops_depend_on_the_seed_of_the_sample_alone(images: Path) -> None:
    samples = crops(images)
    keys = [(i, i) for i in range(20)]
    first = samples_by_key(samples, keys)
    torch.manual_seed(5)
    again = samples_by_key(samples, keys[::-1])[::-1]
    assert all(a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in zip(first, again, strict=True))
    others = samples_by_key(samples, [(i, i + 1) for i in range(20)])
    assert sum(a[1].equal(b[1]) for a, b in zip(first, others, strict=True)) < 5


def test_an_epoch_has_about_a_thousand_samples(images: Path) -> None:
    assert len(crops(images)) == 8 * 125
    assert len(crops(images, "--crops=3")) == 24
    train, val = dataset.train_and_val(opt(images))
    assert 950 < len(train) < 1050, "whatever the number of images"
    assert len(val) == 3 * len(set(val.names()))


def test_the_grid_covers_the_images_without_overlap(images: Path) -> None:
    samples = grid(images)
    assert len(samples) == 4 * 3
    for i in range(4):
        name = samples.names()[3 * i]
        assert samples.names()[3 * i : 3 * i + 3] == [name] * 3
        image = pixels(images / "test" / name)
        row = [samples[3 * i + k][1] for k in range(3)]
        assert torch.cat(row, dim=2).equal(image[:, :16, :48])


def test_the_grid_is_the_same_each_time(images: Path) -> None:
    one, two = (samples_by_key(grid(images), [(0, 0), (7, 7)]) for _ in range(2))
    for first, second in zip(one, two, strict=True):
        assert first[0].equal(second[0])
        assert first[1].equal(second[1])


def test_whole_images_are_of_any_size(photographs: Path) -> None:
    Image.new("RGB", (33, 70), "red").save(photographs / "test" / "tall.png")
    samples = dataset.eval_set(opt(photographs), {}, "test")
    sizes = {tuple(samples[i][0].shape) for i in range(len(samples))}
    assert sizes == {(3, 20, 52), (3, 70, 33)}
    assert samples.names() == ["0.png", "1.png", "2.png", "3.png", "tall.png"]


def test_the_cache_changes_nothing(pairs: Path, images: Path) -> None:
    for folder in (pairs, images):
        parts = [dataset.train_and_val(opt(folder)) for _ in range(2)]
        use_cache(list(parts[0]), "on", 2, torch.device("cpu"))
        for cached, plain in zip(*parts, strict=True):
            assert cached.images.mapped is not None
            assert plain.images.mapped is None
            keys = [(i, i) for i in range(min(10, len(plain)))]
            both = zip(samples_by_key(cached, keys), samples_by_key(plain, keys), strict=True)
            assert all(a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in both)


def test_the_two_parts_of_a_split_share_one_cache(photographs: Path) -> None:
    train, val = dataset.train_and_val(opt(photographs))
    use_cache([train, val], "on", 2, torch.device("cpu"))
    assert train.images is val.images
    assert len(list((photographs / ".cache").iterdir())) == 1


def test_data_sets_can_be_sent_to_workers(images: Path) -> None:
    """As they are where workers are not forked: on macOS, on Windows, since Python 3.14."""
    for samples in (crops(images), grid(images)):
        received = pickle.loads(pickle.dumps(samples))
        ours, theirs = (samples_by_key(each, [(3, 7)])[0] for each in (samples, received))
        assert ours[0].equal(theirs[0])
        assert ours[1].equal(theirs[1])


def test_pairs_are_mirrored_together() -> None:
    inputs = torch.randint(256, (64, 3, 4, 4), dtype=torch.uint8)
    random = torch.Generator().manual_seed(0)
    settings = opt("none")
    flipped, targets = dataset.augment(settings, {}, random, inputs, 255 - inputs)
    assert targets.equal(255 - flipped)
    mirrored = [a.equal(b.flip(2)) for a, b in zip(flipped, inputs, strict=True)]
    same = [a.equal(b) for a, b in zip(flipped, inputs, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 10 < sum(mirrored) < 54
    settings.flip = False
    assert dataset.augment(settings, {}, random, inputs, inputs)[0].equal(inputs)


def square(count: int, side: int = 4) -> Tensor:
    """Images in which no two pixels are alike, so that each of their positions differs."""
    numbers = torch.arange(3 * side * side, dtype=torch.uint8).reshape(3, side, side)
    return numbers.repeat(count, 1, 1, 1)


@pytest.mark.parametrize(("flip", "positions"), [(False, 4), (True, 8)])
def test_pairs_are_turned_together(flip: bool, positions: int) -> None:
    needs("--turn")
    inputs = square(256)
    settings = opt("none", "--turn", "--flip" if flip else "--no-flip")
    random = torch.Generator().manual_seed(0)
    turned, targets = dataset.augment(settings, {}, random, inputs, -inputs)
    assert targets.equal(-turned)
    wanted = [inputs[0].rot90(quarters, (1, 2)) for quarters in range(4)]
    wanted += [image.flip(2) for image in wanted] if flip else []
    counts = [int((turned == image).flatten(1).all(dim=1).sum()) for image in wanted]
    assert sum(counts) == 256, "no other change, and no two positions are the same"
    assert len(counts) == positions and min(counts) > 256 / positions / 2


def test_turns_are_off_by_default_and_depend_on_the_generator_alone() -> None:
    turn = needs("dataset.turn")
    inputs = square(64)
    settings = opt("none", "--no-flip")
    random = torch.Generator().manual_seed(0)
    assert dataset.augment(settings, {}, random, inputs, inputs)[0].equal(inputs)
    first = turn(inputs, torch.Generator().manual_seed(3))
    torch.manual_seed(5)
    assert turn(inputs, torch.Generator().manual_seed(3)).equal(first)
    assert not turn(inputs, torch.Generator().manual_seed(4)).equal(first)


def test_what_is_not_square_cannot_be_turned() -> None:
    turn = needs("dataset.turn")
    with pytest.raises(BadInput, match=r"--turn: .* square .* 6 x 4"):
        turn(torch.zeros(2, 3, 4, 6), torch.Generator())


# Files.


def test_subfolders_and_hidden_files(pairs: Path) -> None:
    for side in "AB":
        (pairs / "train" / side / "more").mkdir()
        shutil.copy(pairs / "train" / side / "0.png", pairs / "train" / side / "more" / "0.png")
    (pairs / "train" / "A" / "._0.png").write_text("what macOS leaves on a stick")
    names = [f"{i}.png" for i in range(8)]
    assert crops(pairs, "--crops=1").names() == [*names, "more/0.png"]


def test_files_that_are_no_images_are_named(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "train" / "notes.txt").write_text("")
    dataset.train_and_val(opt(photographs))
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "notes.txt" in warning


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_an_image_is_the_one_it_is_read_with(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 10)).save("x.jpg", exif=exif)
    assert image_size("x.jpg") == read_image("x.jpg").size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fingerprint_is_of_the_samples(folder: Path, layout: str) -> None:
    before = crops(folder).fingerprint()
    assert crops(folder).fingerprint() == before
    assert crops(folder, "--crops=3").fingerprint() != before
    train, val = dataset.train_and_val(opt(folder))
    assert len({before, train.fingerprint(), val.fingerprint()}) == 3
    for side in "AB" if layout == "folders" else ".":
        path = folder / "train" / side / "0.png"
        path.rename(path.with_name("zero.png"))
    assert crops(folder).fingerprint() != before


# The splits.


def names(samples: Any) -> set[str]:
    """The files of the samples, with their folder."""
    return {f"{samples.root}/{name}" for name in samples.names()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_share_of_the_pairs_is_set_aside_to_validate_on(folder: Path, layout: str) -> None:
    everything = names(whole(folder))
    assert len(everything) == 8
    sizes = []
    for share in (0.001, 0.3, 0.5, 0.9):
        train, val = dataset.train_and_val(opt(folder, f"--val-share={share}"))
        assert train.layout == layout
        assert not names(train) & names(val)
        assert names(train) | names(val) == everything
        sizes.append(len(names(val)))
    assert sizes == sorted(sizes)
    assert sizes[0] == 1 and sizes[1] < sizes[-1] < 8


@pytest.mark.parametrize("layout", ["folders", "side-by-side"])
def test_both_images_of_a_pair_are_on_one_side(folder: Path, layout: str) -> None:
    """Every sample of either side is a pair, and its images are those of its name."""
    for samples in dataset.train_and_val(opt(folder, "--val-share=0.4")):
        for i in range(0, len(samples), max(1, len(samples) // 20)):
            inputs, target = samples[i]
            assert target.equal(255 - inputs)
            if layout == "folders":
                assert contains(pixels(samples.root / "A" / samples.names()[i]), inputs)
                assert contains(pixels(samples.root / "B" / samples.names()[i]), target)
            else:
                assert contains(pixels(samples.root / samples.names()[i]), inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_files_move_no_old_one_to_the_other_side(folder: Path, layout: str) -> None:
    before = [names(part) for part in dataset.train_and_val(opt(folder, "--val-share=0.4"))]
    for path in [*(folder / "train").rglob("*.png")]:
        shutil.copy(path, path.with_name(f"{path.stem}-new.png"))  # in between
    after = [names(part) for part in dataset.train_and_val(opt(folder, "--val-share=0.4"))]
    assert before[0] < after[0] and before[1] < after[1]


def test_the_layout_of_pairs_has_no_say_in_which_are_set_aside(
    pairs: Path, side_by_side: Path
) -> None:
    """The name of the pair decides: the same pairs are divided alike, in two files or in one."""
    divided = [
        [set(part.names()) for part in dataset.train_and_val(opt(folder, "--val-share=0.5"))]
        for folder in (pairs, side_by_side)
    ]
    assert divided[0] == divided[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_val_is_used_if_there_is_one(folder: Path, layout: str) -> None:
    everything = names(whole(folder))
    (folder / "test").rename(folder / "val")  # a run needs no test/
    train, val = dataset.train_and_val(opt(folder, "--val-share=0.5"))
    assert (train.root, val.root) == (folder / "train", folder / "val")
    assert names(train) == everything
    assert len(val) == 4 * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pair_alone_cannot_be_divided(folder: Path, layout: str) -> None:
    for path in (folder / "train").rglob("*.png"):
        if path.name != "0.png":
            path.unlink()
    word = "pair" if layout == "folders" else "image"
    with pytest.raises(BadInput, match=rf"train: only one {word}, .* or a folder val/"):
        dataset.train_and_val(opt(folder))
    (folder / "test").rename(folder / "val")
    train, val = dataset.train_and_val(opt(folder))
    assert (len(names(train)), len(names(val))) == (1, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_split_can_be_evaluated_in_whole_images(folder: Path, layout: str) -> None:
    def evaluated(split: str) -> set[str]:
        samples = dataset.eval_set(opt(folder), {}, split)
        assert len(samples) == len(names(samples))
        assert {tuple(samples[i][1].shape) for i in range(len(samples))} == {(3, 20, 52)}
        return names(samples)

    train, val = dataset.train_and_val(opt(folder))
    assert evaluated("test") == names(whole(folder, split="test"))
    assert (evaluated("train"), evaluated("val")) == (names(train), names(val))
    shutil.copytree(folder / "test", folder / "val")
    assert evaluated("val") == names(whole(folder, split="val"))
    assert evaluated("train") == names(whole(folder))


@pytest.mark.parametrize("layout", ["folders", "side-by-side"])
def test_no_pair_of_test_changes_a_bit_of_a_run(folder: Path, layout: str, train: Train) -> None:
    """Photographs are in engine/test_splits.py."""
    data = f"--data={folder}"
    assert train("before", data, "--epochs=1") == 0
    for path in (folder / "test").rglob("*.png"):
        Image.new("RGB", image_size(path), "red").save(path)
    assert train("changed", data, "--epochs=1") == 0
    shutil.rmtree(folder / "test")
    assert train("without", data, "--epochs=1") == 0
    for run in ("changed", "without"):
        assert same_weights(Path(run), Path("before"))
        found, wanted = points(Path(run))[-1], points(Path("before"))[-1]
        assert wanted["split"] == "val"
        assert found["values"] == wanted["values"]


def test_the_photographs_that_come_with_the_project() -> None:
    root = dataset.data_dir(dataset.BUILT_IN)
    assert root.resolve() == Path(dataset.__file__).parent / dataset.BUILT_IN
    settings = opt(root, "--img-size=64", "--no-flip")
    train, val = dataset.train_and_val(settings)
    assert len(names(train)) + len(names(val)) == 12
    assert len(names(val)) == 1
    test_names = ["cat.jpg", "dogs.jpg", "mountains.jpg", "pagoda.jpg"]
    assert dataset.eval_set(settings, {}, "test").names() == test_names
    sizes = sum(path.stat().st_size for path in root.rglob("*.jpg"))
    assert sizes < 300_000


# Degradations of photographs.


@pytest.mark.parametrize("name", dataset.DEGRADATIONS)
def test_degradations_keep_shape_and_type(name: str) -> None:
    settings = opt("none", "--noise=80")
    for height, width in ((16, 16), (21, 33)):
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        changed = degrade(image, name, settings)
        assert (changed.dtype, changed.shape) == (torch.uint8, image.shape)
        assert not changed.equal(image)


@pytest.mark.parametrize("name", dataset.DEGRADATIONS)
def test_the_option_chooses_the_degradation(name: str, images: Path) -> None:
    settings = opt(images, f"--degrade={name}")
    ((inputs, target),) = samples_by_key(whole(images, f"--degrade={name}"), [(2, 7)])
    seed_sample(7)
    assert inputs.equal(degrade(target, name, settings))


def test_noise_has_its_standard_deviation_and_is_cut_off() -> None:
    needs("task.degradations.noise")
    image = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    noisy = degrade(image, "noise", opt("none", "--noise=10")).float()
    assert noisy.std().item() == pytest.approx(10, rel=0.05)
    assert noisy.mean().item() == pytest.approx(128, abs=0.5)
    assert degrade(image, "noise", opt("none", "--noise=0")).equal(image)
    white = degrade(image + 127, "noise", opt("none", "--noise=10"))
    assert white.max() == 255 and white.float().mean() > 240, "255 + 1 is not 0"


def test_grey_has_three_equal_channels() -> None:
    needs("task.degradations.grey")
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 200, 200]])
    image = colours.T[:, None].to(torch.uint8)
    grey = degrade(image, "grey", opt("none"))
    assert grey[:, 0].T.tolist() == [[76] * 3, [150] * 3, [29] * 3, [200] * 3]


def test_low_resolution_keeps_smooth_images_and_loses_details() -> None:
    needs("task.degradations.low_resolution")
    smooth = torch.arange(64).mul(3).expand(3, 64, 64).to(torch.uint8)
    fine = torch.tensor([0, 255]).repeat(32).expand(3, 64, 64).to(torch.uint8)
    settings = opt("none", "--scale=4")
    kept = degrade(smooth, "low-resolution", settings).float()
    assert (kept - smooth.float()).abs()[:, :, 4:-4].max() <= 2
    lost = degrade(fine, "low-resolution", settings).float()
    assert lost.std() < 10


def test_an_image_is_enlarged_as_low_resolution_does() -> None:
    enlarge = needs("task.degradations.enlarge")
    small = torch.randint(256, (3, 16, 11), dtype=torch.uint8)
    large = enlarge(small, 4)
    assert (large.dtype, large.shape) == (torch.uint8, (3, 64, 44))
    assert enlarge(small, 1.5).shape == (3, 24, 16)
    needs("task.degradations.low_resolution")
    again = degrade(large, "low-resolution", opt("none", "--scale=4")).float()
    difference = (again - large.float()).abs()
    assert difference.mean() < large.float().std() / 4, "it has no details to lose"
    smooth = torch.arange(16).mul(16).expand(3, 16, 16).to(torch.uint8)
    ramp = (torch.arange(64) - 1.5) * 4  # its pixels lie in the middle of those of the small one
    assert (enlarge(smooth, 4)[0, 32].float() - ramp)[8:-8].abs().max() <= 1


def test_edges_are_dark_where_the_brightness_changes() -> None:
    needs("task.degradations.edges")
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, :, 8:] = 200
    found = degrade(image, "edges", opt("none"))
    assert (found[:, :, :7] == 255).all() and (found[:, :, 9:] == 255).all()
    assert (found[:, :, 7:9] == 55).all()


def test_an_image_becomes_bytes_rounded_and_limited() -> None:
    values = torch.tensor([-3.0, -0.4, 0.6, 100.49, 254.6, 300.0])
    found = needs("task.degradations.to_uint8")(values)
    assert (found.dtype, found.tolist()) == (torch.uint8, [0, 0, 1, 100, 255, 255])


# What cannot be used.


@pytest.fixture(params=["train_and_val", "eval_set"])
def refuse(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Expects that data to train on, or to evaluate, are refused with a message."""

    def refuse(message: str, folder: Path, *words: str) -> None:
        with pytest.raises(BadInput, match=message):
            if request.param == "eval_set":
                dataset.eval_set(opt(folder, *words), {}, "train")
            else:
                dataset.train_and_val(opt(folder, *words))

    return refuse


def test_pairs_that_do_not_fit(pairs: Path, refuse: Callable[..., None]) -> None:
    Image.new("RGB", (52, 21)).save(pairs / "train" / "B" / "3.png")
    same = "the images of a pair must have the same size"
    refuse(rf"A/3\.png has 52 x 20 .*B/3\.png 52 x 21: {same}", pairs)
    (pairs / "train" / "B" / "3.png").rename(pairs / "train" / "B" / "three.png")
    refuse(r"train: no image of the same name.*A/3\.png, B/three\.png", pairs)


def test_options_that_do_not_go_with_the_layout(
    pairs: Path, side_by_side: Path, refuse: Callable[..., None]
) -> None:
    name = next(iter(dataset.DEGRADATIONS))
    for folder in (pairs, side_by_side):
        refuse(rf"--degrade {name}: .*has pairs already", folder, f"--degrade={name}")
    refuse("choose one", pairs, "--side-by-side")
    (side_by_side / "dataset.json").write_text(json.dumps({"pairs": "stacked"}))
    refuse(r"dataset\.json", side_by_side)
    Image.new("RGB", (103, 20)).save(side_by_side / "train" / "odd.png")
    (side_by_side / "dataset.json").unlink()
    odd = r"odd\.png: 103 pixels wide, so not two images of one size side by side"
    refuse(odd, side_by_side, "--side-by-side")
    crops(side_by_side)  # they may be photographs


def test_folders_that_hold_no_pairs(pairs: Path, refuse: Callable[..., None]) -> None:
    shutil.rmtree(pairs / "train" / "B")
    refuse("train: has one of the folders A and B; pairs need both", pairs)
    shutil.rmtree(pairs / "train")
    refuse("train: no such folder; --data wants a folder that holds train/", pairs)


def test_images_that_are_too_small(photographs: Path, refuse: Callable[..., None]) -> None:
    """To train on they must have the size of a crop, to evaluate that of SSIM's window."""
    Image.new("RGB", (52, 10)).save(photographs / "train" / "small.png")
    refuse(r"small\.png: 52 x 10 pixels are too few for (--img-size 16; lower|SSIM)", photographs)


def test_images_to_evaluate_may_be_smaller_than_a_crop(photographs: Path) -> None:
    Image.new("RGB", (52, 15)).save(photographs / "test" / "small.png")
    assert "small.png" in dataset.eval_set(opt(photographs), {}, "test").names()


def test_half_an_image_side_by_side_may_be_too_small(
    side_by_side: Path, refuse: Callable[..., None]
) -> None:
    Image.new("RGB", (20, 20)).save(side_by_side / "train" / "small.png")
    refuse(r"small\.png: 10 x 20 pixels are too few for", side_by_side)
