"""Each mistake that people make with a data set: check_data names all, train.py those at hand."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from needs import needs
from PIL import Image
from programs import status, train_refuses

from engine.errors import BadInput
from engine.inference.predictions import ImageFiles

main = needs("tools.check_data.main")
dataset = needs("dataset")
options = needs("options")
needs("dataset.ClassFolders")


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    return shutil.copytree(images, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))


def noise(path: Path, seed: int = 1) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def sets(folder: Path) -> tuple:
    return dataset.train_and_val(options.parse([f"--data={folder}", "--img-size=16"]))


def test_check_data_finds_one_of_everything(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, disc = folder / "train", folder / "train" / "disc"
    one = next(disc.glob("*.png"))
    # B: a near miss of a split, files beside the class folders, a key that does not exist.
    shutil.copytree(folder / "test", folder / "valid")
    noise(train / "beside.png", 2)
    (folder / "index.csv").write_text("")
    (folder / "dataset.json").write_text('{"Flip": false}')
    # C: service folders, a loop, a link to a file of another class, a hard link, other endings.
    noise(disc / "@eaDir" / "thumb.jpg", 3)
    (disc / "again").symlink_to(".")
    (disc / "up").symlink_to("..")
    (train / "rows" / "link.png").symlink_to(one)
    os.link(one, train / "columns" / "hard.png")
    (disc / "x.heic").write_bytes(b"")
    # D and L: depth, channels, pages, pictures, transparency, one colour; and I: the first bytes.
    Image.fromarray(np.array([[3000, 4000]], np.uint16)).save(disc / "deep.png")
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(disc / "float.tif")
    pages = [Image.new("L", (4, 4), i) for i in (1, 2)]
    for name in ("pages.tif", "two.gif"):
        pages[0].save(disc / name, save_all=True, append_images=pages[1:])
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(disc / "clear.png")
    (disc / "page.jpg").write_text("<!DOCTYPE html><html></html>")
    # M: classes that look alike.
    for i, name in enumerate([unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]):
        noise(train / name / "0.png", 10 + i)
        noise(train / name / "1.png", 20 + i)
    noise(train / "Disc" / "0.png", 30)
    noise(train / "Disc" / "1.png", 31)

    assert status(main, "check_data.py", str(folder)) == 2
    out = capsys.readouterr().out
    stops, spoils = out.split("worth a look:")
    for line in (
        "unknown: 'Flip'",
        "deep.png: has 16 bits (3000 to 4000)",
        "float.tif: has 32-bit float values",
        "pages.tif: a TIFF of 2 pages",
        "page.jpg: not readable as an image: a page of HTML",
    ):
        assert line in stops
    for line in (
        "not used: valid/ (rename it val if it is that)",
        "not used: index.csv",
        "as not in a class folder: beside.png",
        f"disc/again/ (the same folder as {disc})",
        f"disc/up/ (the same folder as {train})",
        "disc/x.heic",
        f"disc/{one.name}: the same file as {train}/columns/hard.png (a link), in another class",
        "the first of several pictures is read: disc/two.gif",
        "transparency becomes white: disc/clear.png",
        "of one colour: disc/clear.png, disc/two.gif",
        "differ by Unicode form alone",
        "'Disc' and 'disc' differ by case alone",
    ):
        assert line in spoils, line
    assert spoils.count("(a link)") == 2  # the link and the hard link
    assert "thumb.jpg" not in out


def test_a_run_names_what_it_does_not_use_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "test", folder / "Validation")
    for name in ("0.png", "notes.txt", "README.md", "LICENSE"):
        shutil.copy(folder / "train/disc/0.png", folder / "train" / name)
        shutil.copy(folder / "train/disc/0.png", folder / name)
    (folder / "train/rows/loop").symlink_to("../rows")
    (folder / "dataset.json").write_text('{"flip": true}')
    sets(folder)
    assert capsys.readouterr().err == (
        f"warning: {folder}: not used: Validation/ (rename it val if it is that), 0.png, "
        "notes.txt and 3 more\n"
    )


def test_no_folder_counts_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(folder / "train/rows/more/0.png")
    before = sum(map(len, sets(folder)))
    (folder / "train/disc/again").symlink_to(".")
    (folder / "train/disc/up").symlink_to("../..")
    (folder / "train/columns/stolen").symlink_to("../rows/more")
    train, val = sets(folder)
    assert len(train) + len(val) == before
    assert [train.classes[i] for i in train.labels.tolist()] == [
        name.split("/")[0] for name in train.names()
    ]
    assert "again/ (the same folder as" in capsys.readouterr().err
    for name in ("disc/again", "disc/up", "columns/stolen"):
        (folder / "train" / name).unlink()
    shutil.copytree(folder / "test", folder / "val")
    shutil.rmtree(folder / "val/disc")
    (folder / "val/disc").symlink_to("../train/disc")
    (folder / "train/rows/tested").symlink_to("../../test/rows")
    sets(folder)
    text = capsys.readouterr().err
    assert "no images of disc" in text
    assert f"val/disc/ (the same folder as {folder}/train/disc)" in text
    assert f"train/rows/tested/ (the same folder as {folder}/test/rows)" in text
    shutil.rmtree(folder / "val")
    (folder / "val").symlink_to("train")
    sets(folder)
    text = f"the same images in two splits: {folder}/val is {folder}/train, "
    assert text in capsys.readouterr().err


def test_folders_that_are_links_count(folder: Path) -> None:
    before = sum(map(len, sets(folder)))
    (folder / "train/disc").rename(folder.parent / "elsewhere")
    (folder / "train/disc").symlink_to(folder.parent / "elsewhere")
    assert sum(map(len, sets(folder))) == before


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_image_has_one_class(folder: Path, link: Callable[[Path, Path], object]) -> None:
    before = sum(map(len, sets(folder)))
    link(folder / "train/disc/0.png", folder / "train/disc/twice.png")
    assert sum(map(len, sets(folder))) == before + 1, "to draw it more often, as some do"
    link(folder / "train/disc/0.png", folder / "train/rows/again.png")
    with pytest.raises(BadInput, match=r"again\.png: is the file .*disc.*, so it has two classes"):
        sets(folder)


def nest(folder: Path, *names: str) -> None:
    """Moves all that is in train/ one folder down."""
    for name in names:
        (folder / "train").rename(folder / "within")
        (folder / "train").mkdir()
        (folder / "within").rename(folder / "train" / name)


def sink(folder: Path) -> None:
    """Moves all splits one folder down."""
    (folder / "inner").mkdir()
    for name in ("train", "test"):
        (folder / name).rename(folder / "inner" / name)


def turn(folder: Path) -> None:
    """Puts the classes above train/."""
    for path in [*(folder / "train").iterdir()]:
        (folder / path.name).mkdir()
        path.rename(folder / path.name / "train")
    (folder / "train").rmdir()


def call_two(folder: Path, *names: str) -> None:
    """Leaves two classes in train/, with other names."""
    shutil.rmtree(folder / "train/rows")
    for before, name in zip(("disc", "columns"), names, strict=True):
        (folder / "train" / before).rename(folder / "train" / name)


LAYOUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder too many": (lambda data: nest(data, "train"), "one class alone (train)"),
    "two too many": (lambda data: nest(data, "a", "b"), "are its subfolders the classes?"),
    "Train": (lambda data: (data / "train").rename(data / "Train"), "rename Train to train"),
    "training_set": (
        lambda data: (data / "train").rename(data / "training_set"),
        "rename training_set to train",
    ),
    "above": (sink, "spoiled/inner does"),
    "classes above the splits": (turn, "disc/train, "),
    "one class": (
        lambda data: [*map(shutil.rmtree, (data / "train/disc", data / "train/rows"))],
        "nothing to tell apart; add another",
    ),
    "masks": (
        lambda data: call_two(data, "images", "masks"),
        "look like segmentation",
    ),
    "pairs": (
        lambda data: call_two(data, "input", "target"),
        "look like pairs of images",
    ),
    "a link to test": (lambda data: os.symlink("../test", data / "train/ring"), "spoiled/test)"),
    "a link to another class": (
        lambda data: os.symlink("disc", data / "train/ring"),
        "no image in the class folder ring",
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts_that_can_only_be_a_mistake(
    spoiled: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, culprit = LAYOUTS[case]
    spoil(spoiled)
    assert culprit in train_refuses(capsys, f"--data={spoiled}", "--device=cpu")


@pytest.mark.parametrize(
    "names", [("leftImg8bit", "gtFine"), ("im", "GroundTruth"), ("images", "masks_png")]
)
def test_images_and_masks_by_their_usual_names_are_no_classes(
    spoiled: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    call_two(spoiled, *names)
    told = train_refuses(capsys, f"--data={spoiled}", "--device=cpu")
    assert "look like segmentation" in told


def test_classes_within_classes_are_noted(
    spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spoiled / "train/both").mkdir()
    for name in ("disc", "columns"):
        (spoiled / "train" / name).rename(spoiled / "train/both" / name)
    status(main, "check_data.py", str(spoiled))
    told = capsys.readouterr().out
    assert "belong to the class they lie in: both/columns, both/disc; move them up" in told


def test_names_that_differ_by_their_form_are_told_apart(folder: Path) -> None:
    classes = needs("task.classes")
    check_classes, difference = classes.check_classes, classes.difference
    nfc, nfd = (unicodedata.normalize(form, "Löwe") for form in ("NFC", "NFD"))
    assert difference(nfc, nfd) == "Unicode form"
    assert difference("cat", "cat ") == "blanks"
    assert difference("cat", "Cat") == "case"
    assert difference("cat", " Cat") == "blanks and case"
    assert difference("cat", "cat") == difference("cat", "dog") == ""
    with pytest.raises(BadInput, match="'cat ' differs from 'cat' by blanks"):
        check_classes(folder, ["cat "], ["cat"])


def test_predict_takes_every_kind_of_image_and_names_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["a.jpg", "b.jfif", "c.jpe", "d.gif", "e.avif", "f.BMP", "g.tif", "h.pbm", "i.tga"]
    for name in names:
        Path("photos").mkdir(exist_ok=True)
        image = Image.new("1" if name == "h.pbm" else "RGB", (4, 4))
        image.save(Path("photos", name), format={"b": "JPEG", "c": "JPEG"}.get(name[0]))
    for name in ("notes.txt", "x.heic", "no ending", "photo.psd", ".hidden", "Thumbs.db"):
        Path("photos", name).write_bytes(b"")
    files = ImageFiles(["photos"], lambda path: dataset.load(path, options.parse(["--img-size=4"])))
    assert files.files[:] == [f"photos/{name}" for name in names]
    assert all(bool(files[i][1]) for i in range(len(files)))
    text = "warning: photos: not used: no ending, notes.txt, photo.psd and 1 more\n"
    assert capsys.readouterr().err == text
