"""Whatever is wrong with what a user gives: one line that says what and where, and status 2."""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Project, Tell
from forked import finish, start
from PIL import Image

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SMALL = "--img-size=8 --width=4 --blocks=0 --batch-size=4 --epochs=2 --workers=0"
Damage = Callable[[], object]


def remove(path: str) -> Damage:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def write(path: str, content: bytes) -> Damage:
    def damage() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    return damage


def empty(path: str) -> Damage:
    def damage() -> None:
        shutil.rmtree(path, ignore_errors=True)
        Path(path).mkdir(parents=True)

    return damage


def both(*damages: Damage) -> Damage:
    return lambda: [damage() for damage in damages]


def damage_all_checkpoints() -> None:
    for path in Path("runs/done/checkpoints").glob("*.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()  # else the other names of the file change as well
        path.write_bytes(content)


class Evil:
    """Runs a command when it is unpickled without weights_only."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil_ran",)


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, kind)
    return file.getvalue()


def bomb() -> bytes:
    """The head of a PNG of 50,000 x 50,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def nothing() -> None: ...


TRAIN = f"train --data=images --run-dir=runs/new {SMALL}"
RESUME = f"train --data=images --run-dir=runs/done --resume {SMALL}"
LAST = "runs/done/checkpoints/last.pt"
TEST = f"test --checkpoint={LAST} --data=images"
JPEG, PNG = picture("JPEG"), picture("PNG")
VAL = both(write("images/val/dark/a.png", PNG), write("images/val/light/a.png", PNG))

# What is done to a good data set and a good run, the command, and words that the line must have:
# the culprit, then the remedy.
CASES: dict[str, tuple[Damage, str, list[str]]] = {
    "no data": (nothing, "train --data=nowhere --run-dir=runs/new", ["nowhere", "train/"]),
    "data is a file": (write("f", b""), "train --data=f --run-dir=runs/new", ["f/train", "--data"]),
    "no train": (remove("images/train"), TRAIN, ["images/train", "--data wants"]),
    "no test": (remove("images/test"), TEST, ["images/test", "--data wants"]),
    "no classes in train": (empty("images/train"), TRAIN, ["images/train", "class"]),
    "no classes in test": (empty("images/test"), TEST, ["images/test", "class"]),
    "only a hidden class": (
        both(empty("images/train"), empty("images/train/.ipynb_checkpoints")),
        TRAIN,
        ["images/train", "class"],
    ),
    "empty class in train": (empty("images/train/dark"), TRAIN, ["images/train", "dark", "end in"]),
    "no classes in val": (empty("images/val"), TRAIN, ["images/val", "class"]),
    "one image of a class": (
        write("images/train/third/a.png", PNG),
        TRAIN,
        ["images/train", "third", "add images"],
    ),
    "class without images": (
        both(empty("images/train/dark"), write("images/train/dark/a.txt", b"x")),
        TRAIN,
        ["images/train", "dark"],
    ),
    "class in val alone": (
        both(VAL, write("images/val/third/a.png", PNG)),
        TRAIN,
        ["images/val", "unknown: 'third'"],
    ),
    "class in test alone": (
        write("images/test/third/a.png", PNG),
        TEST,
        ["images/test", "unknown: 'third'"],
    ),
    "truncated JPEG": (
        write("images/train/dark/cut.jpg", JPEG[: len(JPEG) // 2]),
        TRAIN,
        ["images/train/dark/cut.jpg", "truncated", "replace"],
    ),
    "truncated JPEG, workers": (
        write("images/train/dark/cut.jpg", JPEG[: len(JPEG) // 2]),
        TRAIN + " --workers=2",
        ["images/train/dark/cut.jpg", "truncated", "replace"],
    ),
    "truncated PNG in test": (
        write("images/test/dark/cut.png", PNG[:600]),
        TEST,
        ["images/test/dark/cut.png", "replace"],
    ),
    "truncated PNG in val": (
        both(VAL, write("images/val/dark/cut.png", PNG[:600])),
        TRAIN,
        ["images/val/dark/cut.png", "replace"],
    ),
    "truncated PNG in val, workers": (
        both(VAL, write("images/val/dark/cut.png", PNG[:600])),
        TRAIN + " --no-cache --workers=1",
        ["images/val/dark/cut.png", "replace"],
    ),
    "empty file": (
        write("images/train/dark/zero.png", b""),
        TRAIN,
        ["images/train/dark/zero.png", "replace"],
    ),
    "text named as an image": (
        write("images/train/light/text.jpg", b"no picture at all"),
        TRAIN,
        ["images/train/light/text.jpg", "replace"],
    ),
    "decompression bomb": (
        write("images/train/light/bomb.png", bomb()),
        TRAIN,
        ["images/train/light/bomb.png", "replace"],
    ),
    "broken dataset.json": (write("images/dataset.json", b"{"), TRAIN, ["dataset.json", "delete"]),
    "flip is no truth": (
        write("images/dataset.json", b'{"flip": "no"}'),
        TRAIN,
        ["images/dataset.json", "flip", "fix"],
    ),
    "all images for validation": (nothing, TRAIN + " --val-share=1", ["--val-share", "'1'", "0.9"]),
    "batch too large": (nothing, TRAIN + " --batch-size=99", ["--batch-size 99", "at most 14"]),
    "virtual batch too large": (nothing, TRAIN + " --accumulate=9", ["--accumulate 9", "at most"]),
    "nothing to normalise": (
        nothing,
        TRAIN + " --batch-size=1 --img-size=2 --precision=fp32",
        ["--batch-size 1"],
    ),
    "too narrow for bf16": (
        nothing,
        TRAIN + " --img-size=2 --precision=bf16",
        ["--precision bf16", "stride", "--precision fp32"],
    ),
    "not a whole number": (nothing, TRAIN + " --epochs=many", ["--epochs", "'many'", "1 or more"]),
    "zero epochs": (nothing, TRAIN + " --epochs=0", ["--epochs", "'0'", "1 or more"]),
    "half a batch": (nothing, TRAIN + " --batch-size=2.5", ["--batch-size", "'2.5'", "whole"]),
    "negative rate": (nothing, TRAIN + " --lr=-1", ["--lr", "'-1'", "0 or more"]),
    "rate is no number": (nothing, TRAIN + " --lr=nan", ["--lr", "'nan'", "0 or more"]),
    "all dropped": (nothing, TRAIN + " --dropout=1", ["--dropout", "'1'", "0.99"]),
    "warm-up of 200 %": (nothing, TRAIN + " --warmup=2", ["--warmup", "'2'", "from 0 to 1"]),
    "negative seed": (nothing, TRAIN + " --seed=-1", ["--seed", "'-1'", "0 or more"]),
    "one checkpoint": (nothing, TRAIN + " --keep=1", ["--keep", "'1'", "2 or more"]),
    "unknown option": (nothing, TRAIN + " --epoch=3", ["--epoch=3", "--help"]),
    "unknown optimizer": (nothing, TRAIN + " --optimizer=lion", ["--optimizer", "lion", "adamw"]),
    "unknown network": (nothing, TRAIN + " --network=resnet8", ["--network resnet8", "resnet18"]),
    "absent device": (nothing, TRAIN + " --device=cuda:7", ["--device cuda:7", "cpu"]),
    "unknown device": (nothing, TRAIN + " --device=abacus", ["--device abacus", "auto"]),
    "no config": (nothing, "train @nowhere.txt", ["nowhere.txt"]),
    "config of bytes": (write("c.txt", b"\xff\xfe\x00"), "train @c.txt", ["config.txt"]),
    "config with a typo": (write("c.txt", b"--epoch=3\n"), "train @c.txt", ["--epoch=3"]),
    "run exists": (nothing, f"train --run-dir=runs/done {SMALL}", ["runs/done", "--resume"]),
    "run is a file": (
        write("f", b""),
        f"train --data=images --run-dir=f/x {SMALL}",
        ["f/x", "another"],
    ),
    "resume what": (nothing, "train --resume", ["--resume", "--run-dir DIR"]),
    "resume another network": (nothing, RESUME + " --width=8", ["another network", "config.txt"]),
    "resume another optimizer": (
        nothing,
        RESUME + " --optimizer=sgd",
        ["--optimizer adamw is now sgd", "config.txt"],
    ),
    "all checkpoints damaged": (damage_all_checkpoints, RESUME, ["runs/done/checkpoints", "last"]),
    "no checkpoint": (nothing, "test --checkpoint=no.pt", ["no.pt", "no such"]),
    "no checkpoint named": (nothing, "test", ["--checkpoint"]),
    "checkpoint is cut off": (
        lambda: Path("cut.pt").write_bytes(Path(LAST).read_bytes()[:5000]),
        "test --checkpoint=cut.pt",
        ["cut.pt", "damaged"],
    ),
    "checkpoint is text": (write("t.pt", b"text"), "test --checkpoint=t.pt", ["t.pt", "not a"]),
    "checkpoint runs code": (
        lambda: torch.save({"net": Evil(), "n_iter": 0, "args": {}}, "evil.pt"),
        "test --checkpoint=evil.pt",
        ["evil.pt", "run code", "train.py"],
    ),
    "checkpoint of others": (
        lambda: torch.save({"weight": torch.zeros(3)}, "other.pt"),
        "test --checkpoint=other.pt",
        ["other.pt", "train.py"],
    ),
    "test classes differ": (
        lambda: Path("images/test/dark").rename("images/test/black"),
        TEST,
        ["images/test", "missing: 'dark'", "unknown: 'black'"],
    ),
    "predict what": (nothing, f"predict --checkpoint={LAST}", ["FILE_OR_DIR"]),
    "predict nothing there": (
        nothing,
        f"predict --checkpoint={LAST} no.png",
        ["no.png", "no such"],
    ),
    "predict empty folder": (empty("e"), f"predict --checkpoint={LAST} e", ["e:", "no image"]),
    "predict broken image": (
        write("broken.png", PNG[:500]),
        f"predict --checkpoint={LAST} broken.png",
        ["broken.png", "replace"],
    ),
    "prepare what": (nothing, "tools.prepare_data NoSuchSet", ["NoSuchSet", "MNIST"]),
    "prepare over others": (
        empty("there"),
        "tools.prepare_data MNIST --out=there",
        ["there", "--out"],
    ),
}


@pytest.fixture(scope="module")
def good(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a good data set and a good run, and the project's files beside them."""
    folder = tmp_path_factory.mktemp("bad") / "good"
    shutil.copytree(project.path, folder, ignore=shutil.ignore_patterns(".git"))
    for part, count in (("train", 8), ("test", 4)):
        for label, shade in (("dark", 40), ("light", 200)):
            path = folder / "images" / part / label
            path.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (shade + i, shade, shade)).save(path / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        assert finish(start(["--data=images", "--run-dir=runs/done", *SMALL.split()])) == 0
        # Each case imports the project's modules from here, and works in a copy.
        yield folder


@pytest.fixture
def world(good: Path, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "world"
    for name in ("images", "runs"):
        shutil.copytree(good / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def contents(folder: Path) -> dict[Path, bytes]:
    """The files; of a cache, in which a run notes that the images were copied, its being there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: b"" if path.suffix == ".decoded" else path.read_bytes() for path in files}


def complaint(command: str, folder: Path, status: int) -> str:
    """Runs a program that must end with a status and one line on stderr; returns that line."""
    program, *flags = command.split()
    errors, output = str(folder / "errors.txt"), str(folder / "output.txt")
    ended = finish(start(flags, program=program, output=output, errors=errors))
    lines = Path(errors).read_text().splitlines()
    assert ended == status, lines
    *before, line = lines
    assert all(other.startswith("warning: ") for other in before), lines
    assert line.startswith(f"{program.rpartition('.')[2]}.py: error: "), lines
    assert ": error: " not in Path(output).read_text()
    return line


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(world: Path, tmp_path: Path, case: str) -> None:
    damage, command, words = CASES[case]
    damage()
    before = contents(world)
    line = complaint(command, tmp_path, status=2)
    for word in words:
        assert word in line
    after = contents(world)
    changed = [path for path in before if after.get(path) != before[path]]
    assert changed == []
    assert not Path("evil_ran").exists()


def test_a_run_that_diverges_is_one_line(world: Path, tmp_path: Path) -> None:
    line = complaint(TRAIN + " --lr=1e30", tmp_path, status=1)
    for word in ("of step", "not finite", "--lr"):
        assert word in line


def test_there_are_many_kinds(tell: Tell) -> None:
    tell(f"{len(CASES)} kinds of bad input, each one line and status 2")
    assert len(CASES) >= 65
