"""Whatever is wrong with what a user gives, one line says so and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from needs import needs
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


def leave_one(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def make_small(split: Path, height: int = 15) -> None:
    split.mkdir(exist_ok=True)
    Image.new("RGB", (52, height)).save(split / "small.png")


TOO_FEW = "small.png: 52 x 15 pixels are too few for --img-size 16; lower it"
# What is done to a data set; and what train.py, which never reads test/, says to it.
FOR_TRAINING: dict[str, tuple[Spoil, str]] = {
    "no data": (shutil.rmtree, "spoiled/train: no such folder"),
    "no train": (lambda data: shutil.rmtree(data / "train"), "spoiled/train: no such folder"),
    "no images": (lambda data: empty(data / "train"), "train: no image in this folder"),
    "half of the pairs": (lambda data: make_folders(data / "train" / "A"), "pairs need both"),
    "no pairs": (
        lambda data: make_folders(data / "train" / "A", data / "train" / "B"),
        "train/A: no image in this folder",
    ),
    "one image": (lambda data: leave_one(data / "train"), "spoiled/train: only one image, and"),
    "an empty val": (lambda data: make_folders(data / "val"), "val: no image in this folder"),
    "a small image": (lambda data: make_small(data / "train"), TOO_FEW),
    "a small image in val": (lambda data: make_small(data / "val"), TOO_FEW),
    "a text": (lambda data: (data / "train" / "x.png").write_text("no"), "train/x.png: not read"),
    "no JSON": (lambda data: (data / "dataset.json").write_text("{flip: no"), "dataset.json"),
}
# And what test.py says, which reads test/ alone.
FOR_TESTING: dict[str, tuple[Spoil, str]] = {
    "no data": (shutil.rmtree, "spoiled/test: no such folder"),
    "no test": (lambda data: shutil.rmtree(data / "test"), "spoiled/test: no such folder"),
    "no images": (lambda data: empty(data / "test"), "test: no image in this folder"),
    "half of the pairs": (lambda data: make_folders(data / "test" / "A"), "pairs need both"),
    "no pairs": (
        lambda data: make_folders(data / "test" / "A", data / "test" / "B"),
        "test/A: no image in this folder",
    ),
    "a small image": (lambda data: make_small(data / "test", 10), "are too few for SSIM"),
    "a text": (lambda data: (data / "test" / "x.png").write_text("no"), "test/x.png: not read"),
}


@pytest.mark.parametrize("case", FOR_TRAINING)
def test_data_that_cannot_be_trained_on(
    spoiled: Path, small: list[str], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    needs("dataset.Pairs")
    spoil, culprit = FOR_TRAINING[case]
    spoil(spoiled)
    assert culprit in train_refuses(capsys, *small, f"--data={spoiled}")


@pytest.mark.parametrize("case", FOR_TESTING)
def test_data_that_cannot_be_tested_on(
    spoiled: Path, finished: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    needs("dataset.Pairs")
    spoil, culprit = FOR_TESTING[case]
    spoil(spoiled)
    words = [f"--checkpoint={finished}", f"--data={spoiled}", "--device=cpu"]
    assert culprit in refusal(capsys, test.main, "test.py", *words)


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--losses=l2"], "--losses: 'l2'"),
        (["--losses=l1:0"], "--losses: the weight '0'"),
        (["--losses=features"], "--losses: features"),
        (["--losses=perceptual", "--vgg-weights=none"], "--vgg-weights download"),
        (["--losses=l1,perceptual", "--vgg-weights=no.pt"], "--vgg-weights no.pt: no such file"),
        (["--adversarial=wgan"], "--adversarial"),
        (["--degrade=sharpen"], "--degrade"),
        (["--noise=-1"], "--noise"),
        (["--scale=0.5"], "--scale"),
        (["--crops=0"], "--crops"),
        (["--img-size=8"], "--img-size"),
        (["--img-size=32"], "--img-size 32"),
        (["--n-downsampling=6"], "--n-downsampling"),
        (["--d-layers=4"], "--d-layers"),
        (["--pool=3", "--parallel=super"], "--pool"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_this_task(
    small: list[str], capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    for word in words:
        needs(word.partition("=")[0])
    assert culprit in train_refuses(capsys, *small, "--run-dir=run", *words)


@pytest.mark.parametrize("words", [["--tile=100"], ["--overlap=48"], ["--tile=96", "--overlap=64"]])
def test_tiles_that_do_not_fit_together(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    Image.new("RGB", (20, 20)).save("x.png")
    given = [f"--checkpoint={checkpoint}", "--device=cpu", *words]
    assert "--tile" in refusal(capsys, predict.main, "predict.py", *given, "x.png")
    assert "--tile" in refusal(capsys, test.main, "test.py", *given)


@pytest.mark.parametrize("scale", ["0.5", "101", "large"])
def test_images_cannot_be_enlarged_by_that(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], scale: str
) -> None:
    Image.new("RGB", (20, 20)).save("x.png")
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "x.png", f"--scale={scale}"]
    assert "--scale" in refusal(capsys, predict.main, "predict.py", *words)


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


@pytest.mark.parametrize("pairs", [False, True])
def test_images_to_test_may_be_smaller_than_a_crop(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], pairs: bool
) -> None:
    """Only crops for the training have to be of --img-size, which test.py has not."""
    for side in ("A", "B") if pairs else (".",):
        folder = Path("data/test", side)
        folder.mkdir(parents=True)
        for height, width in ((11, 11), (12, 70)):
            Image.effect_noise((width, height), 50).save(folder / f"{height}.png")
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "--data=data", "--report=r"]
    assert status(test.main, "test.py", *words) == 0
    make_small(folder, 10)
    if pairs:
        make_small(Path("data/test/A"), 10)
    error = refusal(capsys, test.main, "test.py", *words)
    assert "SSIM, which takes 11 x 11" in error and "--img-size" not in error


@pytest.mark.slow
def test_an_older_checkpoint_without_a_newer_option(checkpoint: Path) -> None:
    """An option added to options.py later has its default for the checkpoints of before."""
    needs("--d-norm")
    state = torch.load(checkpoint, weights_only=True)
    del state["args"]["d_norm"]
    torch.save(state, checkpoint)
    assert status(test.main, "test.py", f"--checkpoint={checkpoint}", "--device=cpu") == 0


def test_a_checkpoint_of_another_model(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["model"] = "Classifier"
    torch.save(state, checkpoint)
    words = [f"--checkpoint={checkpoint}", "--device=cpu"]
    Image.new("RGB", (20, 20)).save("x.png")
    for main, program, more in (
        (test.main, "test.py", []),
        (predict.main, "predict.py", ["x.png"]),
    ):
        error = refusal(capsys, main, program, *words, *more)
        assert f"{checkpoint}: a checkpoint of another model (Classifier)" in error
