"""The digits that come with the project: which they are, and that no one is in two splits."""

import hashlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from needs import needs
from PIL import Image

import dataset
import options
from engine.data.files import read_dataset_json

ClassFolders = needs("dataset.ClassFolders")
# Checksums of the names of the digits in train/ and test/, and of those that are set aside.
TRAIN_FILES, TEST_FILES, VAL_FILES = "64674ace034b49f2", "cf9f00dae40e4b72", "549f5705d718d807"


def opt(folder: Path, *words: str) -> Namespace:
    return options.parse([f"--data={folder}", "--img-size=16", "--flip", *words])


def load(folder: Path, split: str = "train") -> Any:
    """All images of a split; none is set aside, and none is changed."""
    return ClassFolders(folder / split, opt(folder))


@pytest.fixture
def digits() -> Path:
    """Unpacked once, in the project, for whoever needs them."""
    needs("tools.digits.unpack_digits")
    return dataset.data_dir(dataset.BUILT_IN)


def test_the_images_that_come_with_the_project(digits: Path) -> None:
    assert digits.resolve() == Path(dataset.__file__).parent / "data" / "digits"
    classes = [str(digit) for digit in range(10)]
    train, test = load(digits), load(digits, split="test")
    assert train.classes == test.classes == classes
    assert len(train) + len(test) == 1797
    assert 0.19 < len(test) / 1797 < 0.21
    assert read_dataset_json(digits)["flip"] is False
    assert "CC BY" in read_dataset_json(digits)["licence"]
    # The splits are fixed: these are the files that they have had from the first day.
    checksums = [
        hashlib.sha256(part.images.files.digest()).hexdigest()[:16] for part in (train, test)
    ]
    assert checksums == [TRAIN_FILES, TEST_FILES]
    _, val = dataset.train_and_val(opt(digits, "--val-share=0.1"))
    assert val.fingerprint() == VAL_FILES
    assert not list(digits.parent.glob(".*"))


def test_no_digit_is_in_two_splits(digits: Path) -> None:
    train, val = dataset.train_and_val(opt(digits))
    test = load(digits, split="test")
    pixels = [
        {Image.open(samples.root / file).tobytes() for file in samples.names()}
        for samples in (train, val, test)
    ]
    assert not pixels[0] & pixels[1]
    assert not pixels[0] & pixels[2]
    assert not pixels[1] & pixels[2]


def test_unpacked_digits_are_left_as_they_are() -> None:
    unpack_digits = needs("tools.digits.unpack_digits")
    unpack_digits(Path("data/digits"))
    assert len(list(Path("data/digits").rglob("*.png"))) == 1797
    (Path("data/digits") / "train" / "0" / "mine.png").write_bytes(b"")
    unpack_digits(Path("data/digits"))  # as a second run does that started at the same time
    assert (Path("data/digits") / "train" / "0" / "mine.png").exists()
    assert not list(Path("data").glob(".*"))
