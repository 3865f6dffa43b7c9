"""What is refused whatever the task is: one line says so, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from programs import refusal, status, train_refuses

import predict
import test
import train
from engine.evaluation import Losses

Spoil = Callable[[Path], object]


@pytest.mark.parametrize("content", ["[1, 2]", '"digits"', '{"flip": "no"}'])
def test_a_dataset_json_of_another_kind(
    spoiled: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (spoiled / "dataset.json").write_text(content)
    assert "dataset.json" in train_refuses(capsys, f"--data={spoiled}", "--device=cpu")


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--batch-size=25"], "--batch-size 25"),
        (["--batch-size=8", "--accumulate=4"], "--accumulate 4"),
        (["--batch-size=0"], "--batch-size"),
        (["--epochs=many"], "--epochs"),
        (["--epochs=1.5"], "--epochs"),
        (["--lr=-1"], "--lr"),
        (["--lr=nan"], "--lr"),
        (["--lr=inf"], "--lr"),
        (["--dropout=1"], "--dropout"),
        (["--warmup=1.1"], "--warmup"),
        (["--keep=1"], "--keep"),
        (["--seed=-1"], "--seed"),
        (["--norm=layer"], "--norm"),
        (["--optimizer=lion"], "--optimizer"),
        (["--schedule=step"], "--schedule"),
        (["--precision=fp8"], "--precision"),
        (["--workers=-1"], "--workers"),
        (["--workers=some"], "--workers"),
        (["--parallel=ddp"], "--parallel"),
        (["--device=tpu"], "--device tpu"),
        (["--device=cuda:99"], "--device cuda:99"),
        (["--device=meta"], "--device meta"),
        (["--paralel=none"], "--paralel"),
        (["--epoch=3"], "--epoch"),
        (["stray"], "stray"),
        (["--resume"], "--run-dir"),
        (["@nowhere.txt"], "nowhere.txt"),
        (["--run-dir=a_file"], "a_file"),
        (["--val-share=0"], "--val-share"),
        (["--val-share=1"], "--val-share"),
        (["--val-every=0"], "--val-every"),
        (["--cache=a_file"], "--cache a_file: is no folder"),
        (["--cache=False"], "--cache False: is no folder; say auto, on, off"),
        (["--run=run"], "--run-dir"),
        (["--test-every=2"], "--test-every"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_used(
    small: list[str], capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    Path("a_file").write_text("in the way")
    run = [] if "--resume" in words else ["--run-dir=run"]
    assert culprit in train_refuses(capsys, *small, *run, *words)


def test_a_missing_file_of_options_is_named_with_those_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("presets").mkdir()
    assert train_refuses(capsys, "@presets/nope.txt").endswith("presets/nope.txt: no such file\n")
    for name in ("long.txt", "finetune.txt"):
        Path("presets", name).write_text("--epochs=2\n")
    said = "error: presets/nope.txt: no such file; presets/ has finetune.txt, long.txt\n"
    assert said in train_refuses(capsys, "@presets/nope.txt")
    Path("requirements.txt").touch()
    assert train_refuses(capsys, "@nope.txt").endswith("error: nope.txt: no such file\n")


@pytest.mark.parametrize("program", ["test.py", "predict.py"])
@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda path: path.unlink(), "no such checkpoint"),
        (lambda path: path.write_text("weights"), "not a checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:-99]), "damaged"),
        (lambda path: torch.save({"net": {}}, path), "not a checkpoint"),
    ],
    ids=["missing", "a text", "truncated", "no checkpoint"],
)
def test_a_checkpoint_that_cannot_be_used(
    checkpoint: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    program: str,
    spoil: Spoil,
    culprit: str,
) -> None:
    spoil(checkpoint)
    main = {"test.py": test.main, "predict.py": predict.main}[program]
    more = [] if program == "test.py" else [str(images)]
    error = refusal(capsys, main, program, f"--checkpoint={checkpoint}", "--device=cpu", *more)
    assert str(checkpoint) in error
    assert culprit in error


def test_a_folder_of_runs_is_no_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runs in it are named."""
    words = [f"--checkpoint={finished.parent}", "--device=cpu"]
    line = refusal(capsys, test.main, "test.py", *words)
    assert f"name one of the runs in it: {finished}" in line


def test_a_config_of_another_project_is_named(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The option was not typed by anyone who looks for it now."""
    Path("config.txt").write_text("--of-another-project=1\n")
    line = train_refuses(capsys, *small, "@config.txt")
    assert "--of-another-project" in line and "config.txt" in line.split("--of-another-project")[1]


@pytest.mark.parametrize(
    ("typed", "meant"), [("--epoch", "--epochs"), ("--batchsize", "--batch-size")]
)
def test_the_option_that_was_meant_is_named(
    small: list[str], capsys: pytest.CaptureFixture[str], typed: str, meant: str
) -> None:
    assert f"did you mean {meant}?" in train_refuses(capsys, *small, f"{typed}=3")


def test_a_loss_that_is_no_scalar(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sum would train as well, with gradients that grow with the batch."""

    def one_for_each_image(module: torch.nn.Module, batch: object, losses: Losses) -> Losses:
        return {name: {k: v.expand(4) for k, v in named.items()} for name, named in losses.items()}

    class Careless(train.Model):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.register_forward_hook(one_for_each_image)

    monkeypatch.setattr(train, "Model", Careless)
    assert status(train.main, "train.py", *small, "--run-dir=run") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "(4,)" in line and "scalar" in line


def test_a_checkpoint_of_another_network(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    name = next(iter(state["net"]))
    state["net"]["elsewhere"] = state["net"].pop(name)
    torch.save(state, checkpoint)
    error = refusal(capsys, test.main, "test.py", f"--checkpoint={checkpoint}", "--device=cpu")
    assert "another network" in error
    assert name in error


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["nowhere.jpg"], "nowhere.jpg"),
        (["an_empty_folder"], "an_empty_folder"),
        (["a_text.txt"], "a_text.txt"),
        ([], "FILE_OR_DIR"),
    ],
)
def test_images_that_cannot_be_predicted(
    finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    Path("an_empty_folder").mkdir()
    Path("a_text.txt").write_text("no image")
    words = [f"--checkpoint={finished / 'checkpoints' / 'best.pt'}", "--device=cpu", *words]
    assert culprit in refusal(capsys, predict.main, "predict.py", *words)


@pytest.mark.parametrize("how", [["--workers=0", "--no-cache"], ["--workers=1", "--no-cache"], []])
def test_a_damaged_image_is_named(
    spoiled: Path, small: list[str], capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    whole = min((spoiled / "train").rglob("*.png"))
    path = whole.with_suffix(".jpg")
    Image.open(whole).resize((64, 64)).save(path)
    whole.unlink()
    path.write_bytes(path.read_bytes()[:-300])
    words = [*small, f"--data={spoiled}", "--run-dir=run", *how]
    before = sorted(Path().rglob("*"))
    assert status(train.main, "train.py", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    if "--no-cache" not in how:  # else it is found when the run has begun
        assert sorted(Path().rglob("*")) == before
