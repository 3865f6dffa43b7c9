"""predict.py: an image for each image, of any size."""

import io
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from needs import needs
from PIL import Image
from programs import status
from torch import Tensor
from torch.utils.data import Dataset

import dataset
import predict
from engine import modules
from engine.data.loader import Loader, to_memory_format
from model import Model


def predicted(checkpoint: Path, *words: str, out: str = "predictions") -> dict[str, np.ndarray]:
    given = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32", *words]
    assert status(predict.main, "predict.py", *given) == 0
    files = sorted(path for path in Path(out).rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): np.asarray(Image.open(path)) for path in files}


def photograph(height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)


def save(image: Tensor, path: str) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def test_an_image_for_each_image(checkpoint: Path, images: Path) -> None:
    Path("folder/deep").mkdir(parents=True)
    save(photograph(33, 47), "folder/0.bmp")
    Image.new("L", (40, 20)).save("folder/deep/A.png")
    Image.new("L", (40, 20)).save("folder/a.jpg")
    Image.new("L", (40, 20)).save("folder/A.png")
    found = predicted(checkpoint, "folder", "folder/0.bmp", "--out=there/x", out="there/x")
    assert {*found} == {"0.png", "A.png.png", "a.jpg.png", "deep/A.png"}
    assert found["0.png"].shape == (33, 47, 3)
    model, _ = Model.from_checkpoint(str(checkpoint))
    output = model.translate(dataset.load("folder/0.bmp")[None])[0]
    assert found["0.png"].tolist() == output.permute(1, 2, 0).tolist()


@pytest.mark.slow
def test_workers_change_nothing_and_old_files_are_replaced(checkpoint: Path, images: Path) -> None:
    first = predicted(checkpoint, str(images / "test"))
    shutil.copy("predictions/1.png", "predictions/0.png")
    again = predicted(checkpoint, str(images / "test"), "--workers=1")
    assert first.keys() == again.keys() and len(first) == 4
    assert all((first[name] == again[name]).all() for name in first)


@pytest.mark.parametrize(
    ("scale", "size"),
    [
        *[("1", (20, 31)), ("1.5", (30, 46))],
        pytest.param("2", (40, 62), marks=pytest.mark.slow),
        pytest.param("4", (80, 124), marks=pytest.mark.slow),
    ],
)
def test_images_are_enlarged_first_if_wanted(
    checkpoint: Path, scale: str, size: tuple[int, int]
) -> None:
    """1.5 x 31 is 46.5, which is rounded to an even number."""
    small = photograph(20, 31)
    save(small, "small.png")
    found = predicted(checkpoint, "small.png", f"--scale={scale}")["small.png"]
    assert found.shape == (*size, 3)
    model, _ = Model.from_checkpoint(str(checkpoint))
    large = needs("task.degradations.enlarge")(small, float(scale))
    assert scale != "1" or large.equal(small)
    device = torch.device("cpu")  # rounding depends on the order in memory: that of predict.py
    (inputs,) = to_memory_format((large[None],), device)
    wanted = modules.to_device(model, device).eval().translate(inputs)[0]
    assert found.tolist() == wanted.permute(1, 2, 0).tolist()


def test_after_low_resolution_images_are_enlarged_as_in_training(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["args"] |= {"degrade": "low-resolution", "scale": 3.0}
    torch.save(state, "enlarge.pt")
    save(photograph(20, 31), "small.png")
    assert predicted(Path("enlarge.pt"), "small.png")["small.png"].shape == (60, 93, 3)
    found = predicted(Path("enlarge.pt"), "small.png", "--scale=1", "--out=same", out="same")
    assert found["small.png"].shape == (20, 31, 3)


def test_the_images_can_be_sent_to_workers(
    checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are where workers are not forked: on macOS, on Windows, since Python 3.14."""
    sent: list[bool] = []

    class Sending(Loader):
        def __init__(self, dataset: Dataset, *more: Any) -> None:
            super().__init__(pickle.loads(pickle.dumps(dataset)), *more)
            sent.append(True)

    monkeypatch.setattr(predict, "Loader", Sending)
    found = predicted(checkpoint, str(images / "test"), "--scale=2")
    assert {image.shape for image in found.values()} == {(40, 104, 3)}
    assert sent


def test_it_goes_on_past_images_that_cannot_be_read(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names come from standard input, one of which is not there."""
    save(photograph(20, 31), "first.png")
    save(photograph(33, 17), "last one.png")
    Path("bad.png").write_text("no image")
    lines = b"first.png\nbad.png\ngone.png\nlast one.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32", "-"]
    assert status(predict.main, "predict.py", *words) == 1
    bad, gone, error = capsys.readouterr().err.splitlines()[-3:]
    assert bad.startswith("warning: bad.png: not readable as an image")
    assert gone == "warning: gone.png: no such file"
    assert error == "predict.py: error: 2 of 4 images could not be read"
    written = sorted(path.name for path in Path("predictions").iterdir())
    assert written == ["first.png", "last one.png"]
    alone = predicted(checkpoint, "last one.png", "--out=alone", out="alone")
    with Image.open("predictions/last one.png") as found:
        assert np.asarray(found).tolist() == alone["last one.png"].tolist()
