"""predict.py: a line for each image, in the order in which they were given."""

import csv
import io
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import refusal, status
from torch.utils.data import Dataset

import dataset
import predict
from engine.data.files import images_below
from engine.data.loader import Loader
from engine.inference.predictions import ImageFiles
from model import Model


@pytest.fixture
def checkpoint(finished: Path) -> str:
    return str(finished / "checkpoints" / "best.pt")


def predicted(checkpoint: str, *words: str, out: str = "predictions.csv") -> list[dict[str, str]]:
    options = [f"--checkpoint={checkpoint}", "--device=cpu", *words]
    assert status(predict.main, "predict.py", *options) == 0
    with open(out, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_folders_in_the_order_given(checkpoint: str, images: Path) -> None:
    shutil.copytree(images / "test" / "rows", "folder/deep/rows")
    shutil.copy(images / "test/disc/1.png", "folder/ä, b.PNG")
    Path("folder/notes.txt").write_text("not an image")
    Path("folder/._x.png").write_text("hidden")
    single = str(images / "test" / "disc" / "3.png")
    rows = predicted(checkpoint, single, "folder", single)
    expected = [single, str(Path("folder/ä, b.PNG"))]  # the files of a folder, then its folders
    expected += [*(str(Path("folder/deep/rows", f"{i}.png")) for i in range(4)), single]
    assert [row["file"] for row in rows] == expected
    assert list(rows[0]) == ["file", "class", "probability"]


def test_class_and_probability_are_those_of_the_model(checkpoint: str, images: Path) -> None:
    rows = predicted(checkpoint, str(images / "test"), "--batch-size=5", "--precision=fp32")
    model, opt = Model.from_checkpoint(checkpoint)
    files = ImageFiles([str(images / "test")], partial(dataset.load_eval, opt=opt))
    assert len(rows) == len(files) == 12
    assert opt.img_size == 16
    with torch.no_grad():
        shares = model.scores(torch.stack([files[i][0] for i in range(12)])).softmax(dim=1)
    for row, share in zip(rows, shares, strict=True):
        assert row["class"] == model.classes[int(share.argmax())]
        assert float(row["probability"]) == pytest.approx(share.max().item(), abs=1e-4)


@pytest.mark.slow
def test_workers_and_batches_change_nothing(checkpoint: str, images: Path) -> None:
    first = predicted(checkpoint, str(images / "test"))
    more = ["--workers=1", "--batch-size=3", "--out=other.csv"]
    again = predicted(checkpoint, str(images / "test"), *more, out="other.csv")
    assert [row["class"] for row in again] == [row["class"] for row in first]


def test_the_images_can_be_sent_to_workers(
    checkpoint: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are where workers are not forked: on macOS, on Windows, since Python 3.14."""
    sent: list[bool] = []

    class Sending(Loader):
        def __init__(self, dataset: Dataset, *more: Any) -> None:
            super().__init__(pickle.loads(pickle.dumps(dataset)), *more)
            sent.append(True)

    monkeypatch.setattr(predict, "Loader", Sending)
    assert len(predicted(checkpoint, str(images / "test"))) == 12
    assert sent


def test_a_file_that_was_there_is_replaced_as_a_whole(checkpoint: str, images: Path) -> None:
    Path("predictions.csv").write_text("file,class,probability\n" + "old,disc,1\n" * 1000)
    assert len(predicted(checkpoint, str(images / "test/disc/0.png"))) == 1
    Path("bad.png").write_text("no image")
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "bad.png"]
    assert status(predict.main, "predict.py", *words) == 2
    assert len(Path("predictions.csv").read_text().splitlines()) == 2


def test_the_best_classes_in_falling_order(checkpoint: str, images: Path) -> None:
    usual = predicted(checkpoint, str(images / "test"))
    rows = predicted(checkpoint, str(images / "test"), "--top=3")
    names = ["file", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert list(rows[0]) == names
    classes = Model.from_checkpoint(checkpoint)[0].classes
    for row, best in zip(rows, usual, strict=True):
        assert {name: row[name] for name in best} == best
        assert {row["class"], row["class_2"], row["class_3"]} == set(classes)
        shares = [float(row[name]) for name in names[2::2]]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)


def test_more_classes_than_there_are(
    checkpoint: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--checkpoint={checkpoint}", "--device=cpu", str(images / "test"), "--top=4"]
    assert "--top 4: the checkpoint has 3 classes" in refusal(
        capsys, predict.main, "predict.py", *words
    )


@pytest.mark.parametrize("workers", ["0", "1"])
def test_it_goes_on_past_images_that_cannot_be_read(
    checkpoint: str, images: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    shutil.copytree(images / "test", "test")
    Path("test/disc/1.png").write_text("no image")
    words = [f"--checkpoint={checkpoint}", "--device=cpu", f"--workers={workers}", "test"]
    assert status(predict.main, "predict.py", *words, "--batch-size=3") == 1
    warning, error = capsys.readouterr().err.splitlines()[-2:]
    assert warning.startswith(f"warning: {Path('test/disc/1.png')}: not readable as an image")
    assert error == "predict.py: error: 1 of 12 images could not be read"
    with open("predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    Path("test/disc/1.png").unlink()
    assert len(rows) == 11
    assert [row["file"] for row in rows] == images_below("test")
    for row, alone in zip(rows, predicted(checkpoint, "test"), strict=True):
        assert row["class"] == alone["class"]


def test_names_of_files_from_standard_input(
    checkpoint: str,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With blanks, and one that is not there; other words may stand beside `-`."""
    shutil.copy(images / "test/disc/1.png", "ä b.png")
    single = str(images / "test" / "rows" / "0.png")
    lines = f"ä b.png\r\n\n{single}\ngone.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    words = [f"--checkpoint={checkpoint}", "--device=cpu", single, "-"]
    assert status(predict.main, "predict.py", *words) == 1
    assert "gone.png" in capsys.readouterr().err
    with open("predictions.csv", encoding="utf-8", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [single, "ä b.png", single]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert "standard input" in refusal(capsys, predict.main, "predict.py", *words)
