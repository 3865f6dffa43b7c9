"""Folders of images and masks, or of pairs, are no classes, whatever they are called."""

from pathlib import Path

import numpy as np
import pytest
from needs import needs
from PIL import Image, ImageFilter

import options
from engine.errors import BadInput

dataset = needs("dataset")
needs("dataset.ClassFolders")
COUNT = 9


def photo(i: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(i).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def mask(i: int, value: int = 255) -> Image.Image:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[5 + i : 20, 8:30] = value
    return Image.fromarray(pixels)


def palette(i: int) -> Image.Image:
    image = mask(i, 3).convert("P")
    image.putpalette([0, 0, 0, 0, 99, 0, 9, 9, 9, 200, 0, 0])
    return image


def save(root: Path, name: str, image: Image.Image) -> None:
    path = root / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def sets(root: Path) -> tuple:
    return dataset.train_and_val(options.parse([f"--data={root}", "--img-size=16"]))


@pytest.mark.parametrize(
    ("make", "ending"),
    [(mask, "png"), (lambda i: mask(i, 1), "png"), (palette, "png"), (mask, "jpg")],
)
def test_masks_with_the_names_of_the_images(tmp_path: Path, make: object, ending: str) -> None:
    for i in range(COUNT):
        save(tmp_path, f"one/{i}.jpg", photo(i))
        save(tmp_path, f"other/{i}.{ending}", make(i))  # type: ignore[operator]
    with pytest.raises(BadInput, match="one, other look like segmentation"):
        sets(tmp_path)
    (tmp_path / "train/other" / f"0.{ending}").rename(tmp_path / "train/other" / f"own.{ending}")
    sets(tmp_path)


def test_images_of_one_colour_are_no_masks_and_hide_none(tmp_path: Path) -> None:
    for i in range(COUNT):
        save(tmp_path, f"one/{i}.png", photo(i))
        save(tmp_path, f"other/{i}.png", Image.new("RGBA", (40, 30), (9, i, 9, 0)))
    assert len(sets(tmp_path)[0].classes) == 2
    for i in range(1, COUNT):  # some masks are empty
        save(tmp_path, f"other/{i}.png", mask(i))
    with pytest.raises(dataset.BadInput, match="one, other look like segmentation"):
        sets(tmp_path)


def test_masks_beside_the_images(tmp_path: Path) -> None:
    for i in range(COUNT):
        for name in ("benign", "malignant"):
            save(tmp_path, f"{name}/{name} ({i}).png", photo(i))
            save(tmp_path, f"{name}/{name} ({i})_mask.png", mask(i))
    with pytest.raises(BadInput, match=r"benign \(0\)_mask.png looks like the mask of"):
        sets(tmp_path)


def test_the_same_pictures_in_two_classes_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(COUNT):
        save(tmp_path, f"one/{i}.png", photo(i))
        save(tmp_path, f"other/{i}.png", photo(i).filter(ImageFilter.GaussianBlur(1)))
    sets(tmp_path)
    assert "one and other hold the same pictures under the same names" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["photographs", "drawings", "other sizes", "dark", "few"])
def test_classes_whose_images_are_numbered_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for i in range(2 if kind == "few" else COUNT):
        one, other = photo(i), photo(i + COUNT)
        if kind == "drawings":
            one, other = mask(i), mask(i + 1, 200)
        elif kind == "other sizes":
            other = mask(i).resize((20, 20))
        elif kind == "dark":
            other = other.point(lambda value: value // 11)
        elif kind == "few":
            other = mask(i)
        save(tmp_path, f"one/{i}.png", one)
        save(tmp_path, f"other/{i}.png", other)
    sets(tmp_path)
    assert not capsys.readouterr().err
