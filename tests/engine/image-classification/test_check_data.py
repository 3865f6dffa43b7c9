"""tools/check_data.py: everything that is wrong with a data set, in one go."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from needs import needs
from PIL import Image
from programs import status

main = needs("tools.check_data.main")
needs("dataset.ClassFolders")


def check(capsys: pytest.CaptureFixture[str], *folder: Path) -> tuple[int, str]:
    capsys.readouterr()
    code = status(main, "check_data.py", *map(str, folder))
    streams = capsys.readouterr()
    assert "Traceback" not in streams.err
    return code, streams.out


def draw(path: Path, i: int) -> None:
    image = Image.new("RGB", (16, 16), (i, 0, 0))
    image.putpixel((0, 0), (0, i, 9))
    image.save(path)


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    return shutil.copytree(images, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))


def test_a_good_data_set(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check(capsys, images)
    assert code == 0
    assert "24 images in 3 classes" in out
    assert "12 images in 3 classes" in out
    assert "width: 16 to 16 pixels" in out
    assert out.splitlines()[-1] == "no problems"


def test_without_a_folder_it_looks_at_the_built_in_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out = check(capsys)
    assert code == 0
    assert "1442 images in 10 classes" in out
    assert out.splitlines()[-1] == "no problems"


def test_all_faults_are_listed_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0.png", "5.png"):
        (folder / "train" / "disc" / name).write_bytes(b"\x89PNG")
    shutil.rmtree(folder / "test" / "rows")
    for path in (folder / "test" / "columns").iterdir():
        path.unlink()
    (folder / "dataset.json").write_text("{")
    code, out = check(capsys, folder)
    assert code == 2
    for culprit in (
        "disc/0.png",
        "disc/5.png",
        "no folder for rows",
        "test/columns",
        "dataset.json",
    ):
        assert culprit in out
    assert "\n3 faults, 2 notes" in out  # a test needs no images of each class


def test_what_may_spoil_a_run_is_worth_a_look(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "train" / "disc" / "1.png", folder / "test" / "disc" / "leak.png")
    shutil.copy(folder / "train" / "disc" / "2.png", folder / "train" / "rows" / "twin.png")
    (folder / "train" / "disc" / "notes.txt").write_text("")
    (folder / "train" / "stray.png").write_bytes(b"")
    for i in range(80):
        draw(folder / "train" / "rows" / f"more-{i}.png", i)
    code, out = check(capsys, folder)
    assert code == 0
    for culprit in ("leak.png", "twin.png", "notes.txt", "stray.png", "--balance"):
        assert culprit in out
    assert "\n0 faults, 5 notes" in out


def test_val_is_looked_at_if_it_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "test", folder / "val")
    (folder / "val" / "disc" / "0.png").write_bytes(b"")
    (folder / "val" / "stars").mkdir()
    code, out = check(capsys, folder)
    assert code == 2
    assert "val: 12 images in 4 classes" in out
    for culprit in ("val/disc/0.png: not readable", "unknown: 'stars'", "val/stars: no image"):
        assert culprit in out
    assert "\n2 faults, 12 notes" in out  # of the others each is in test/ as well


def test_a_leak_between_any_two_splits_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "test", folder / "val")
    for i, path in enumerate(sorted((folder / "val").rglob("*.png"))):
        draw(path, i)
    assert check(capsys, folder)[1].splitlines()[-1] == "no problems"
    for number, (source, target) in enumerate(
        [("train/disc/0.png", "val"), ("train/disc/1.png", "test"), ("val/disc/0.png", "test")], 1
    ):
        leak = f"{target}/disc/leak-{number}.png"
        shutil.copy(folder / source, folder / leak)
        code, out = check(capsys, folder)
        assert code == 0
        assert f"{folder / leak}: the same file as {folder / source}" in out
        assert f"\n0 faults, {number} note" in out


def test_a_file_that_may_be_on_both_sides_of_the_division_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "train" / "disc" / "2.png", folder / "train" / "disc" / "twin.png")
    code, out = check(capsys, folder)
    assert code == 0
    assert "twin.png: the same file as" in out and "validated on" in out
    shutil.copytree(folder / "test", folder / "val")  # then train/ is not divided
    for i, path in enumerate(sorted((folder / "val").rglob("*.png"))):
        draw(path, i)
    code, out = check(capsys, folder)
    assert "twin.png: the same file as" in out and "it counts twice" in out


def test_a_class_of_one_image_needs_a_folder_val(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(1, 8):
        (folder / "train" / "disc" / f"{i}.png").unlink()
    code, out = check(capsys, folder)
    assert code == 2
    assert "only one image in disc" in out
    shutil.copytree(folder / "test", folder / "val")
    assert check(capsys, folder)[0] == 0


def test_training_needs_no_folder_test(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "test")
    code, out = check(capsys, folder)
    assert code == 0
    assert f"{folder / 'test'}: no such folder; test.py will need it" in out
    assert "\n0 faults, 1 note\n" in out


def test_no_data_set_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check(capsys, Path("nowhere"))
    assert code == 2
    assert "nowhere" in out


def photograph(seed: int) -> Image.Image:
    blots = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(blots).resize((90, 70), Image.Resampling.BICUBIC)


def test_near_copies_are_named_those_between_splits_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        photograph(i).save(folder / "train" / "disc" / f"photo{i}.png")
    flipped = photograph(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(folder / "test" / "disc" / "flipped.png")
    photograph(1).save(folder / "test" / "disc" / "saved.jpg", quality=50)
    photograph(2).save(folder / "train" / "rows" / "other.jpg", quality=50)
    photograph(3).resize((70, 64)).save(folder / "train" / "disc" / "smaller.png")
    photograph(3).resize((60, 50)).save(folder / "train" / "disc" / "too-small.png")
    (folder / "train" / "stray.txt").write_text("")
    code, out = check(capsys, folder)
    train, test = folder / "train", folder / "test"
    assert code == 0
    notes = out.partition("worth a look:\n")[2].splitlines()
    assert notes[0].startswith(f"  {test}: 2 images with a near copy in {train}, which makes")
    assert notes[1].startswith(
        f"  {test}/disc/flipped.png: a mirrored near copy of {train}/disc/photo0.png ("
    )
    assert notes[2].startswith(f"  {test}/disc/saved.jpg: a near copy of {train}/disc/photo1.png")
    assert notes[3].startswith(f"  {train}: not used: stray.txt")
    assert notes[4] == f"  {train}: 2 images with a near copy in the same split"
    assert f"{train}/disc/smaller.png: a near copy of {train}/disc/photo3.png" in notes[5]
    assert notes[5].endswith("; one may be trained on and the other validated on; keep one")
    assert f"{train}/rows/other.jpg: a near copy of {train}/disc/photo2.png" in notes[6]
    assert notes[6].endswith(", in another class; keep one")
    assert "near copies: looked for from 64 x 64 pixels on; 37 are smaller" in out


def test_equal_files_are_not_named_as_near_copies_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/disc/one.png", "test/disc/two.png"):
        photograph(0).save(folder / name)
    out = check(capsys, folder)[1]
    assert "near copy" not in out and "two.png: the same file as" in out


def test_no_digit_is_a_near_copy(capsys: pytest.CaptureFixture[str]) -> None:
    assert "near copies: looked for from 64 x 64 pixels on; 1,797 are smaller\n" in check(capsys)[1]


# A table.


def tabulate(folder: Path, *more: str) -> list[str]:
    paths = sorted(path.relative_to(folder) for path in folder.glob("*/*/*.png"))
    lines = ["file,label", *(f"{path.as_posix()},{path.parts[1]}" for path in paths), *more]
    (folder / "labels.csv").write_text("\n".join(lines))
    return lines


def test_a_good_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("task.labels.Table")
    before = check(capsys, folder)[1]
    tabulate(folder)
    code, out = check(capsys, folder)
    assert (code, out) == (0, before)


def test_all_faults_of_rows_are_listed_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("task.labels.Table")
    draw(folder / "stray.png", 7)
    tabulate(folder, "train/disc/77.png,disc", "train/disc/0.png,rows", "test/rows/0.png,")
    code, out = check(capsys, folder)
    assert code == 2
    for line, culprit in ((38, "no such file"), (39, "with another label"), (40, "another label")):
        assert f"labels.csv: line {line}: " in out and culprit in out
    assert "no row of labels.csv names: stray.png" in out
    assert "\n3 faults, 1 note\n" in out


def test_images_of_a_table_are_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("task.labels.Table")
    photograph(0).save(folder / "train/disc/photo.png")
    photograph(0).save(folder / "test/disc/saved.jpg", quality=50)
    (folder / "train/rows/1.png").write_bytes(b"\x89PNG")
    draw(folder / "alone.png", 9)
    tabulate(folder, "test/disc/saved.jpg,disc", "alone.png,Disc")
    code, out = check(capsys, folder)
    assert code == 2
    assert f"{folder}/train/rows/1.png: not readable" in out
    near = f"{folder}/test/disc/saved.jpg: a near copy of {folder}/train/disc/photo.png ("
    assert near in out and f"{folder}/test: 1 image with a near copy in {folder}/train" in out
    assert "the classes 'Disc' and 'disc' differ by case alone" in out
    assert "only one image in Disc" in out
    assert f"{folder}/test: no row for Disc" in out
