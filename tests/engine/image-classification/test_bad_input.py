"""Whatever is wrong with what a user gives, one line says so and nothing is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Train
from marks import slow_after
from needs import needs
from programs import last, refusal, resume, status, train_refuses

import predict
import test

Spoil = Callable[[Path], object]


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def make_a_file(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("x")


def remove_classes(split: Path) -> None:
    for folder in split.iterdir():
        shutil.rmtree(folder)


def hide_images(folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(path.with_name("._" + path.name))


def leave_one(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


# What is done to a data set; and what train.py, which never reads test/, says to it.
FOR_TRAINING: dict[str, tuple[Spoil, str]] = {
    "no data": (shutil.rmtree, "spoiled"),
    "no train": (lambda data: shutil.rmtree(data / "train"), "spoiled/train: no such folder"),
    "a file": (make_a_file, "spoiled/train"),
    "no classes": (lambda data: remove_classes(data / "train"), "train: "),
    "no images": (lambda data: empty(data / "train" / "disc"), "train: no image in the class"),
    "hidden images": (lambda data: hide_images(data / "train" / "disc"), "disc"),
    "one image": (lambda data: leave_one(data / "train" / "disc"), "only one image in disc"),
    "no JSON": (lambda data: (data / "dataset.json").write_text("{flip: no"), "dataset.json"),
}
# And what test.py says, which reads test/ alone.
FOR_TESTING: dict[str, tuple[Spoil, str]] = {
    "no data": (shutil.rmtree, "spoiled"),
    "no test": (lambda data: shutil.rmtree(data / "test"), "spoiled/test: no such folder"),
    "hidden images": (lambda data: [*map(hide_images, (data / "test").iterdir())], "disc"),
    "a class too many": (
        lambda data: shutil.copytree(data / "test" / "rows", data / "test" / "stars"),
        "unknown: 'stars'",
    ),
}


@pytest.mark.parametrize("case", FOR_TRAINING)
def test_data_that_cannot_be_trained_on(
    spoiled: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    needs("dataset.ClassFolders")
    spoil, culprit = FOR_TRAINING[case]
    spoil(spoiled)
    assert culprit in train_refuses(capsys, f"--data={spoiled}", "--device=cpu")


@pytest.mark.parametrize("case", slow_after(2, FOR_TESTING))
def test_data_that_cannot_be_tested_on(
    spoiled: Path, finished: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    needs("dataset.ClassFolders")
    spoil, culprit = FOR_TESTING[case]
    spoil(spoiled)
    words = [f"--checkpoint={finished}", f"--data={spoiled}", "--device=cpu"]
    assert culprit in refusal(capsys, test.main, "test.py", *words)


@pytest.mark.parametrize(
    ("words", "culprit", "ours"),
    [
        (["--network=resnet81"], "resnet18", "task.libraries.make"),
        (["--network=simpel"], "simple", "networks.SimpleNetwork"),
        (["--network=zzz"], "--network zzz", "--network"),
        (["--loss=mse"], "--loss", "--loss"),
        (["--shift=-1"], "--shift", "--shift"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_networks_and_losses_that_do_not_exist(
    small: list[str], capsys: pytest.CaptureFixture[str], words: list[str], culprit: str, ours: str
) -> None:
    needs(ours)
    assert culprit in train_refuses(capsys, *small, "--run-dir=run", *words)


@pytest.mark.parametrize("words", [["--network=zzz"], ["--lr=-1"], ["--schedule=up"]])
def test_bad_options_are_refused_before_images_are_decoded(
    spoiled: Path, small: list[str], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    needs("--network")
    train_refuses(capsys, *small, f"--data={spoiled}", "--run-dir=run", *words)
    assert not (spoiled / ".cache").exists()


def test_an_older_checkpoint_without_a_newer_option(checkpoint: Path) -> None:
    """An option added to options.py later has its default for the checkpoints of before."""
    needs("--network")
    state = torch.load(checkpoint, weights_only=True)
    del state["args"]["pretrained"]
    torch.save(state, checkpoint)
    assert status(test.main, "test.py", f"--checkpoint={checkpoint}", "--device=cpu") == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--freeze"], ["--weight-decay=0.5"]], ids=" ".join)
def test_a_resume_never_ignores_an_option(
    train: Train, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """What the optimizer cannot take over is refused, all else takes effect."""
    needs("task.libraries.make")
    assert train("run", "--network=squeezenet1_1", "--img-size=32", "--epochs=1") == 0
    capsys.readouterr()
    code = resume(Path("run"), *options, "--epochs=2")
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if code == 0:
        groups = last(Path("run"))["optim"]["net"]["param_groups"]
        assert groups[0]["weight_decay"] == 0.5
    else:
        assert code == 2
        assert error.count("\n") == 1
        assert options[0].split("=")[0] in error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "inception_v3"])
def test_an_image_size_that_the_network_cannot_take(
    images: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    needs("task.libraries.make")
    words = [f"--data={images}", "--device=cpu", "--batch-size=4", f"--network={name}"]
    assert "--img-size" in train_refuses(capsys, *words, "--img-size=32", "--run-dir=run")


def test_images_too_small_for_instance_norm(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    needs("networks.SimpleNetwork")
    words = [*small, "--network=simple", "--norm=instance", "--img-size=4", "--run-dir=run"]
    assert "--img-size" in train_refuses(capsys, *words)


def test_outputs_that_cannot_be_written(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a_file").write_text("in the way")
    checkpoint = [f"--checkpoint={finished / 'checkpoints' / 'best.pt'}", "--device=cpu"]
    report = [*checkpoint, "--report=a_file"]
    out = [*checkpoint, str(images), "--out=no/such/folder/predictions.csv"]
    for main, program, words in (
        (test.main, "test.py", report),
        (predict.main, "predict.py", out),
    ):
        capsys.readouterr()
        assert status(main, program, *words) in (1, 2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words[-1].split("=")[1].split("/")[-1] in error


@pytest.mark.parametrize(
    ("words", "culprit"),
    [(["ImageNet"], "ImageNet"), ([], "NAME"), (["MNIST", "--out=taken"], "taken")],
)
def test_data_sets_that_cannot_be_prepared(
    capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    main = needs("tools.prepare_data.main")
    Path("taken").mkdir()
    assert culprit in refusal(capsys, main, "prepare_data.py", *words)
