"""Whatever is wrong with what a user gives, one line says so and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from programs import refusal, status, train_refuses

import predict
import test

Spoil = Callable[[Path], object]


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir()


SPOILED: dict[str, tuple[Spoil, str]] = {
    "no data": (shutil.rmtree, "spoiled/train: no such folder"),
    "no train": (lambda data: shutil.rmtree(data / "train"), "spoiled/train: no such folder"),
    "no test": (lambda data: shutil.rmtree(data / "test"), "spoiled/test: no such folder"),
    "no images": (lambda data: empty(data / "train"), "train: no image in this folder"),
    "half of the pairs": (lambda data: make_folders(data / "train" / "A"), "pairs need both"),
    "no pairs": (
        lambda data: make_folders(data / "test" / "A", data / "test" / "B"),
        "test/A: no image in this folder",
    ),
    "a small image": (
        lambda data: Image.new("RGB", (52, 15)).save(data / "train" / "small.png"),
        "small.png: 52 x 15 pixels are too few for --img-size 16; lower it",
    ),
    "a text": (lambda data: (data / "train" / "x.png").write_text("no"), "train/x.png: not read"),
    "no JSON": (lambda data: (data / "dataset.json").write_text("{flip: no"), "dataset.json"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_data_that_cannot_be_used(
    spoiled: Path, small: list[str], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, culprit = SPOILED[case]
    spoil(spoiled)
    assert culprit in train_refuses(capsys, *small, f"--data={spoiled}")


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--losses=l2"], "--losses: 'l2'"),
        (["--losses=l1:0"], "--losses: the weight '0'"),
        (["--losses=features"], "--losses: features"),
        (["--losses=perceptual", "--vgg-weights=none"], "--vgg-weights download"),
        (["--losses=l1,perceptual", "--vgg-weights=no.pt"], "--vgg-weights no.pt: no such file"),
        (["--adversarial=wgan"], "--adversarial"),
        (["--degrade=blur"], "--degrade"),
        (["--noise=-1"], "--noise"),
        (["--scale=0.5"], "--scale"),
        (["--crops=0"], "--crops"),
        (["--img-size=8"], "--img-size"),
        (["--img-size=32"], "--img-size 32"),
        (["--d-layers=4"], "--d-layers"),
        (["--pool=3", "--parallel=super"], "--pool"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_this_task(
    small: list[str], capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    assert culprit in train_refuses(capsys, *small, "--run=run", *words)


@pytest.mark.parametrize("words", [["--tile=100"], ["--overlap=48"], ["--tile=96", "--overlap=64"]])
def test_tiles_that_cannot_be_laid(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    Image.new("RGB", (20, 20)).save("x.png")
    given = [f"--checkpoint={checkpoint}", "--device=cpu", *words]
    assert "--tile" in refusal(capsys, predict.main, "predict.py", *given, "x.png")
    assert "--tile" in refusal(capsys, test.main, "test.py", *given)


def test_predictions_never_overwrite_their_inputs(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (20, 20)).save("photos/x.png")
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "photos", "--out=photos/../photos"]
    assert "x.png would be overwritten" in refusal(capsys, predict.main, "predict.py", *words)
    Path("a_file").write_text("in the way")
    words = [*words[:3], "--out=a_file"]
    assert "--out a_file" in refusal(capsys, predict.main, "predict.py", *words)


def test_an_older_checkpoint_without_a_newer_option(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    del state["args"]["d_norm"]
    torch.save(state, checkpoint)
    assert status(test.main, "test.py", f"--checkpoint={checkpoint}", "--device=cpu") == 0
