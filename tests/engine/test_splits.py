"""What chooses is not what judges: training reads train/ and val/, and test/ is left alone."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Build, Train
from PIL import Image, ImageOps
from programs import points, same_weights

import dataset


def images_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*.png") if ".cache" not in path.parts)
    assert found
    return found


def change_images(folder: Path) -> None:
    for path in images_in(folder):
        with Image.open(path) as image:
            changed = ImageOps.invert(image.convert("RGB"))
        changed.save(path)


def measured(run: Path) -> list[dict]:
    """The metrics of the validations."""
    return [point["values"] for point in points(run) if point["split"] == "val"]


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", [change_images, remove])
def test_the_test_images_change_no_bit(
    train: Train, finished: Path, spoiled: Path, change: Callable[[Path], None]
) -> None:
    change(spoiled / "test")
    assert train("run", f"--data={spoiled}") == 0
    assert same_weights(Path("run"), finished)
    assert measured(Path("run")) == measured(finished)
    assert not (spoiled / "test" / ".cache").exists()


def test_val_is_validated_on_if_there_is_one(train: Train, spoiled: Path) -> None:
    (spoiled / "test").rename(spoiled / "val")
    data = f"--data={spoiled}"
    assert train("first", data) == 0
    assert train("second", data, "--val-share=0.5") == 0  # has no say
    assert same_weights(Path("first"), Path("second"))
    assert measured(Path("first")) == measured(Path("second"))
    change_images(spoiled / "val")
    assert train("third", data) == 0
    assert same_weights(Path("first"), Path("third"))  # nor is it trained on
    assert measured(Path("first")) != measured(Path("third"))


@pytest.fixture
def painted(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set whose training images have one colour each, so that any part shows which it is."""
    monkeypatch.setattr(dataset, "random_transforms", lambda opt: [], raising=False)
    for i, path in enumerate(images_in(spoiled / "train")):
        paint(path, i)
    return spoiled


def paint(path: Path, number: int, shade: int = 0) -> None:
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, (number, 100 - number, shade)).save(path)


Colours = set[tuple[int, ...]]


def sides(build: Build, *options: str) -> tuple[Colours, Colours]:
    """The colours of the images that are trained on, and of those that are validated on."""
    parts, found = build(*options), []
    for data_set in (parts.train_set, parts.val_set):
        # The last image of a sample is the one that was read, whatever was made of it.
        images = [[p for p in data_set[i] if p.dim() == 3][-1] for i in range(len(data_set))]
        found.append({tuple(image[:, 0, 0].tolist()) for image in images})
    assert all(found) and not found[0] & found[1]
    return found[0], found[1]


def test_a_share_of_train_is_set_aside(build: Build, painted: Path) -> None:
    sizes = []
    for share in ("0.1", "0.3", "0.5", "0.9"):
        training, validation = sides(
            build, f"--data={painted}", f"--val-share={share}", "--batch-size=1"
        )
        assert len(training | validation) == len(images_in(painted / "train"))
        sizes.append(len(validation))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_new_files_move_no_old_one(build: Build, painted: Path) -> None:
    options = [f"--data={painted}", "--val-share=0.5"]
    before = sides(build, *options)
    for i, path in enumerate(images_in(painted / "train")):
        added = path.with_name(f"{path.stem} new{path.suffix}")  # sorts in between
        paint(Path(shutil.copy(path, added)), i, shade=200)
    after = sides(build, *options)
    assert before[0] < after[0]
    assert before[1] < after[1]


def test_the_times_and_the_place_of_the_files_have_no_say(build: Build, painted: Path) -> None:
    before = sides(build, f"--data={painted}", "--val-share=0.5")
    for path in images_in(painted / "train"):
        os.utime(path, (1, 1))
    moved = painted.rename("elsewhere")
    assert sides(build, f"--data={moved}", "--val-share=0.5") == before
