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
    assert f"{names[0]}/ and {names[1]}/ have the same names" in error
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
    assert "C/ and D/ have the same names" in capsys.readouterr().out
