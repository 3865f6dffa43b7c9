"""predict.py: a line for each image, in the order in which they were given."""

import csv
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import status
from torch.utils.data import Dataset

import dataset
import predict
from engine.images import ImageFiles
from engine.loader import Loader
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
    files = ImageFiles([str(images / "test")], partial(dataset.load_to_judge, opt=opt))
    assert len(rows) == len(files) == 12
    assert opt.img_size == 16
    with torch.no_grad():
        shares = model.scores(torch.stack([files[i][0] for i in range(12)])).softmax(dim=1)
    for row, share in zip(rows, shares, strict=True):
        assert row["class"] == model.classes[int(share.argmax())]
        assert float(row["probability"]) == pytest.approx(share.max().item(), abs=1e-4)


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
    Path("predictions.csv").write_text("old\n" * 1000)
    assert len(predicted(checkpoint, str(images / "test/disc/0.png"))) == 1
    Path("bad.png").write_text("no image")
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "bad.png"]
    assert status(predict.main, "predict.py", *words) == 2
    assert len(Path("predictions.csv").read_text().splitlines()) == 2
