"""What chooses is not what judges: training reads train/ and val/, and test/ is left alone."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Build, Train
from PIL import Image, ImageOps
from programs import points, same_weights


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


def samples(build: Build, *options: str) -> tuple[set[bytes], set[bytes]]:
    """What is trained on and what is validated on, as bytes, each sample once."""
    parts = build(*options, "--cache")
    both = []
    for data_set in (parts.train_set, parts.val_set):
        contents = [data_set[i][-2].numpy().tobytes() for i in range(len(data_set))]
        both.append(set(contents))
    return both[0], both[1]


def test_a_share_of_train_is_set_aside(build: Build) -> None:
    sizes = []
    for share in ("0.1", "0.3", "0.5"):
        training, validation = samples(build, f"--val-share={share}")
        assert training and validation
        assert not training & validation
        sizes.append((len(training), len(validation)))
    assert len({sum(size) for size in sizes}) == 1  # each image is on one side
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] != sizes[-1]


def test_new_files_move_no_old_one(build: Build, spoiled: Path) -> None:
    data = [f"--data={spoiled}", "--val-share=0.5"]
    before = samples(build, *data)
    for path in images_in(spoiled / "train"):
        with Image.open(path) as image:
            ImageOps.invert(image.convert("RGB")).save(path.with_name(f"new {path.name}"))
    after = samples(build, *data)
    for old, new, other in zip(before, after, reversed(after), strict=True):
        assert old < new
        assert not old & other


def test_the_times_and_the_place_of_the_files_have_no_say(build: Build, spoiled: Path) -> None:
    before = samples(build, f"--data={spoiled}")
    for path in images_in(spoiled / "train"):
        os.utime(path, (1, 1))
    moved = spoiled.rename("elsewhere")
    assert samples(build, f"--data={moved}") == before
