"""Layouts of pairs that are nearly right, transparent targets, and check_data for pairs."""

import shutil
from pathlib import Path

import example
import numpy as np
import pytest
from needs import needs
from PIL import Image
from programs import status, train_refuses

import options
from engine.data import contents

main = needs("tools.check_data.main")
dataset = needs("dataset")
needs("dataset.Pairs")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    example.make_pairs(tmp_path / "pairs")
    return tmp_path / "pairs"


def sets(folder: Path, *words: str) -> tuple:
    return dataset.train_and_val(options.parse([f"--data={folder}", "--img-size=16", *words]))


@pytest.mark.parametrize("names", [("input", "target"), ("a", "b"), ("blurred", "sharp")])
def test_folders_of_other_names_are_no_photographs(
    pairs: Path, small: list[str], capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    for side, name in zip("AB", names, strict=True):
        (pairs / "train" / side).rename(pairs / "train" / name)
    error = train_refuses(capsys, *small, f"--data={pairs}")
    assert f"{names[0]}/ and {names[1]}/ look like input and target" in error
    assert len(sets(pairs, "--degrade=noise")[0].rows.unique()) > 8  # said to be photographs
    with pytest.raises(dataset.BadInput, match="holds folders, and train/ photographs"):
        dataset.eval_set(options.parse([f"--data={pairs}", "--img-size=16"]), {}, "test")


def test_images_twice_as_wide_as_high_may_be_pairs(
    pairs: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(pairs / "train")
    (pairs / "train").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(pairs / "train" / f"{i}.png")
    assert "--side-by-side, else" in train_refuses(capsys, *small, f"--data={pairs}")
    for word in ("--side-by-side", "--no-side-by-side", "--degrade=noise"):
        sets(pairs, word)
    Image.new("RGB", (41, 20)).save(pairs / "train" / "other.png")
    sets(pairs)


@pytest.mark.parametrize(
    ("size", "words"),
    [((16, 32), "twice as high as wide"), ((48, 16), "three times as wide as high")],
)
def test_images_that_hold_several_are_no_photographs(
    pairs: Path, size: tuple[int, int], words: str
) -> None:
    shutil.rmtree(pairs / "train")
    write(pairs, "train/0.png train/1.png train/2.png", size)
    with pytest.raises(dataset.BadInput, match=f"each image is {words}; .*cut them into"):
        sets(pairs)
    sets(pairs, "--no-side-by-side")


def write(root: Path, names: str, size: tuple[int, int] = (20, 24)) -> None:
    for i, name in enumerate(names.split()):
        pixels = np.random.default_rng(i).integers(0, 255, (*size[::-1], 3)).astype(np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


PAIRS = {  # what people have, and the two that are named
    "x/blur/1.png x/sharp/1.png y/blur/1.png y/sharp/1.png": "x/blur/ and x/sharp/",
    "x/blur_gamma/1.png x/sharp/1.png": "x/blur_gamma/ and x/sharp/",
    "train_blur/0/1.png train_sharp/0/1.png": "train_blur/ and train_sharp/",
    "1_in.png 1_gt.png 2_in.png 2_gt.png": "1_in.png and 1_gt.png",
    "1.png 1_gt.png 2.png 2_gt.png": "1.png and 1_gt.png",
    "rain-1.png norain-1.png": "rain-1.png and norain-1.png",
    "img1LR.png img1HR.png": "img1LR.png and img1HR.png",
    "1/GT_10.png 1/NOISY_10.png": "1/NOISY_10.png and 1/GT_10.png",
    "lr/1_lr.png hr/1_hr.png": "lr/ and hr/",
    "LR/1x4.png HR/1.png HR/2.png": "LR/ and HR/",
    "hazy/1_1.png hazy/1_2.png clear/1.png": "hazy/ and clear/",
    "input/1.png target/1.png mask/1.png": "input/ and target/",
    "1.png gt/1.png 2.png gt/2.png": "1.png and gt/1.png",
    "one/1.png other/1.png third/1.png": "one/ and other/",
    "x/one/1.png x/other/1.png y/one/2.png y/other/2.png": "x/one/ and x/other/",
    "1left.png 1right.png 2left.png 2right.png 3left.png 3right.png": "1left.png and 1right.png",
    "1.png 1.jpg 2.png 2.jpg 3.png 3.jpg": "1.jpg and 1.png",
}


@pytest.mark.parametrize("names", PAIRS)
def test_names_of_pairs_are_no_photographs(tmp_path: Path, names: str) -> None:
    write(tmp_path / "train", names)
    with pytest.raises(dataset.BadInput, match=f"train: {PAIRS[names]} look like input and target"):
        sets(tmp_path)
    sets(tmp_path, "--degrade=noise")  # said to be photographs


@pytest.mark.parametrize(
    "names",
    [
        "cats/cat1.png cats/cat2.png cats/cat3.png dogs/dog1.png dogs/dog2.png dogs/dog3.png",
        "2019/1.png 2019/2.png 2020/2.png 2020/3.png",
        "000/0.png 000/1.png 001/0.png 001/1.png 002/0.png 002/1.png",
        "red_cat.png red_dog.png blue_cat.png green_dog.png",
        "cat.png dog.png",
        "rain.png input.png IMG_1.png IMG_2.png IMG_3.png",
    ],
)
def test_names_that_are_alike_by_chance_are_photographs(tmp_path: Path, names: str) -> None:
    write(tmp_path / "train", names)
    assert sets(tmp_path)[0].layout == "photographs"


@pytest.mark.parametrize(
    "names", ["blur/train/1.png sharp/train/1.png", "trainA/1.png trainB/2.png"]
)
def test_a_split_beside_which_there_are_sides_is_named(tmp_path: Path, names: str) -> None:
    write(tmp_path, names)
    with pytest.raises(dataset.BadInput, match="if they are inputs and targets, move them to"):
        sets(tmp_path)


def test_the_two_of_a_pair_may_have_other_endings(tmp_path: Path) -> None:
    for folder, end in (("train/A", "jpg"), ("train/B", "png")):
        write(tmp_path, " ".join(f"{folder}/{i}.{end}" for i in range(1, 5)))
    train_set, val_set = sets(tmp_path)
    paths = [train_set.images.path(row)[-7:] for row in range(8)]
    assert paths == ["A/1.jpg", "A/2.jpg", "A/3.jpg", "A/4.jpg", *(f"B/{i}.png" for i in "1234")]
    judged = {Path(name).stem for name in val_set.names()}
    records = contents.Files(tmp_path, train_set, val_set).records
    assert {Path(n).stem for n, record in records.items() if record[-1] == "validation"} == judged
    assert sum(record[-1] == "validation" for record in records.values()) == 2 * len(judged)
    assert status(main, "check_data.py", str(tmp_path)) == 0
    write(tmp_path, "train/A/1.png")
    with pytest.raises(dataset.BadInput, match=r"the other folder: A/1.jpg"):
        sets(tmp_path)


def test_a_folder_that_is_a_link_to_the_other_is_no_pair(
    pairs: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(pairs / "train" / "B")
    (pairs / "train" / "B").symlink_to("A")
    error = train_refuses(capsys, *small, f"--data={pairs}")
    assert "train/B: no image in this folder" in error
    assert f"B/ (the same folder as {pairs}/train/A)" in error


def test_what_is_not_used_and_lost_transparency_are_named_once(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "train" / "C").mkdir()
    shutil.copy(pairs / "train/A/0.png", pairs / "train/C/0.png")
    shutil.copytree(pairs / "test", pairs / "valid")
    for side in "AB":
        image = Image.open(pairs / f"train/{side}/1.png").convert("RGBA")
        image.putalpha(100)
        image.save(pairs / f"train/{side}/1.png")
    sets(pairs)
    assert capsys.readouterr().err == (
        f"warning: {pairs}/train: the transparency of targets is lost, it becomes white: 1.png\n"
        f"warning: {pairs}: not used: valid/ (rename it val if it is that), train/C/0.png\n"
    )


def test_check_data_finds_one_of_everything(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(main, "check_data.py", str(pairs)) == 0
    assert "16 images, folders" in capsys.readouterr().out
    train = pairs / "train"
    Image.new("RGB", (8, 8)).save(train / "A/2.png")
    Image.fromarray(np.full((20, 52), 0.5, np.float32)).save(train / "A/deep.tif")
    Image.fromarray(np.full((20, 52), 7, np.uint8)).save(train / "B/deep.tif")
    shutil.copy(train / "A/1.png", pairs / "test/A/1.png")
    image = Image.open(train / "B/1.png").convert("RGBA")
    image.putalpha(0)
    image.save(train / "B/1.png")
    shutil.copy(train / "A/0.png", train / "beside.png")
    (train / "A/up").symlink_to("..")
    (pairs / "dataset.json").write_text('{"pair": "side-by-side"}')
    assert status(main, "check_data.py", str(pairs)) == 2
    stops, spoils = capsys.readouterr().out.split("worth a look:")
    for line in ("A/2.png: has (8, 8) pixels, and B/2.png (52, 20)", "32-bit float", "'pair'"):
        assert line in stops
    for line in (
        "of one colour: ",
        "transparency becomes white: B/1.png",
        f"A/up/ (the same folder as {train}), beside.png",
        f"test/A/1.png: the same file as {train}/A/1.png",
        "need a lower --img-size than 64",
    ):
        assert line in spoils
    (train / "B").rename(train / "C")
    (train / "A").rename(train / "D")
    assert status(main, "check_data.py", str(pairs)) == 2
    assert "C/ and D/ look like input and target" in capsys.readouterr().out


def test_near_copies_of_inputs_are_named_and_targets_are_not_compared(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, (split, side) in enumerate((s, side) for s in ("train", "test") for side in "AB"):
        blots = np.random.default_rng(i % 2).integers(0, 256, (12, 12, 3), np.uint8)
        image = Image.fromarray(blots).resize((80, 72), Image.Resampling.BICUBIC)
        image.save(pairs / split / side / "photo.jpg", quality=90 - 10 * i)
    capsys.readouterr()
    assert status(main, "check_data.py", str(pairs)) == 0
    out = capsys.readouterr().out
    test, train = pairs / "test", pairs / "train"
    assert f"{test}: 1 image with a near copy in {train}, which makes metrics too good" in out
    assert f"{test}/A/photo.jpg: a near copy of {train}/A/photo.jpg (" in out
    assert "B/photo.jpg: a" not in out
