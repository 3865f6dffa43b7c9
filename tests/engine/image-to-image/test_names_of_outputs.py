"""The files of predict.py: their names, and that they replace nothing but earlier ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from marks import slow_after
from PIL import Image
from programs import refusal, status

import predict
from task.outputs import name_outputs, save_output


def names(paths: list[str], inputs: list[str]) -> list[str]:
    for path in inputs:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return [path.relative_to("out").as_posix() for path in name_outputs(paths, inputs, Path("out"))]


@pytest.mark.parametrize(
    ("paths", "inputs", "wanted"),
    [
        # An ending is kept by all that differ in it alone, whatever their order.
        (["p"], ["p/y.jpg", "p/y.png", "p/z.jpg"], ["y.jpg.png", "y.png.png", "z.png"]),
        (["p"], ["p/y.jpg.png", "p/y.jpg", "p/y.gif"], ["y.jpg.png.png", "y.jpg.png", "y.gif.png"]),
        (["p"], ["p/y.jpg", "p/Y.PNG"], ["y.jpg.png", "Y.PNG.png"]),
        (["p"], ["p/\u00e9.jpg", "p/e\u0301.png"], ["\u00e9.jpg.png", "e\u0301.png.png"]),
        (["p"], ["p/a.png", "p/A.png"], ["a.png.png", "A.png-2.png"]),
        (["p"], ["p/.png", "p/y", "p/y."], [".png.png", "y.png", "y..png"]),
        # Inputs of two folders keep them.
        (["p", "q"], ["p/y.jpg", "q/y.jpg"], ["p/y.png", "q/y.png"]),
        (["p/a", "q/a"], ["p/a/y.jpg", "q/a/y.jpg"], ["p/a/y.png", "q/a/y.png"]),
        (["p/a/y.jpg", "p/b/y.jpg"], ["p/a/y.jpg", "p/b/y.jpg"], ["a/y.png", "b/y.png"]),
        (["-"], ["p/a/y.jpg", "p/y.jpg"], ["a/y.png", "y.png"]),
        (["p"], ["p/a/y.jpg"], ["a/y.png"]),
        (["p/a/y.jpg"], ["p/a/y.jpg"], ["y.png"]),
        # A file that is named twice has one output.
        (["p", "p/y.jpg"], ["p/y.jpg", "p/../p/y.jpg"], ["y.png", "y.png"]),
    ],
    ids=str,
)
def test_names(paths: list[str], inputs: list[str], wanted: list[str]) -> None:
    for path in {*paths} - {*inputs, "-"}:
        Path(path).mkdir(parents=True)
    assert names(paths, inputs) == wanted


def test_names_are_as_long_as_a_disk_takes(checkpoint: Path) -> None:
    """Of 255 bytes with their ending; what is longer is cut off, and told apart."""
    Path("p").mkdir()
    long = ["x" * 241 + ".png", "x" * 251 + ".jpg", "\u4e2d" * 83 + ".jpg", "\u4e2d" * 83 + ".png"]
    for name in long:
        Image.new("RGB", (12, 12)).save(f"p/{name}")
    given = [f"--checkpoint={checkpoint}", "--device=cpu", "p"]
    assert status(predict.main, "predict.py", *given) == 0
    found = {path.name for path in Path("predictions").iterdir()}
    assert {"x" * 241 + ".png", "x" * 251 + ".png"} < found
    assert len(found) == 4 and all(len(os.fsencode(name)) <= 255 for name in found)


def folder(path: Path, checkpoint: Path) -> None:
    path.mkdir()


OTHERS: dict[str, Callable[[Path, Path], object]] = {
    "a photograph": lambda path, checkpoint: Image.new("RGB", (9, 9)).save(path, "JPEG"),
    "a target": lambda path, checkpoint: Image.new("RGB", (9, 9)).save(path),
    "a text": lambda path, checkpoint: path.write_text("mine"),
    "a checkpoint": lambda path, checkpoint: shutil.copy(checkpoint, path),
    "a link to a checkpoint": lambda path, checkpoint: path.symlink_to(checkpoint.resolve()),
    "a link to the input": lambda path, checkpoint: path.symlink_to(Path("p/x.jpg").resolve()),
    "a folder": folder,
}


@pytest.mark.parametrize("other", slow_after(3, OTHERS))
def test_what_predict_has_not_written_stays(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    Path("p").mkdir()
    Path("out").mkdir()
    for name in ("a.jpg", "x.jpg"):
        Image.new("RGB", (12, 12)).save(f"p/{name}")
    OTHERS[other](Path("out/x.png"), checkpoint)
    given = [f"--checkpoint={checkpoint}", "--device=cpu", "p", "--out=out"]
    error = refusal(capsys, predict.main, "predict.py", *given)
    assert f"{Path('out/x.png')} would be overwritten" in error


@pytest.mark.parametrize("out", ["p", "p/deep/er", "link"])
def test_outputs_are_no_inputs_of_the_next_time(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    Path("p/deep").mkdir(parents=True)
    Image.new("RGB", (12, 12)).save("p/x.jpg")
    Path("link").symlink_to("p")
    given = [f"--checkpoint={checkpoint}", "--device=cpu", "p", f"--out={out}"]
    error = refusal(capsys, predict.main, "predict.py", *given)
    assert f"--out {out}: lies in p" in error
    assert sorted(path.name for path in Path("p").rglob("*")) == ["deep", "x.jpg"]


def test_an_output_is_replaced_but_not_where_it_is_the_input(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_output(torch.zeros(3, 12, 12, dtype=torch.uint8), Path("p/x.png"))
    given = [f"--checkpoint={checkpoint}", "--device=cpu"]
    for _ in range(2):
        assert status(predict.main, "predict.py", *given, "p/x.png") == 0
    error = refusal(capsys, predict.main, "predict.py", *given, "p/x.png", "--out=p")
    assert f"{Path('p/x.png')} would be overwritten" in error
    error = refusal(capsys, predict.main, "predict.py", *given, "p/x.png", "p/../p", "--out=p/../p")
    assert "would be overwritten" in error
    Path("predictions/deep").write_text("in the way")
    Path("p/deep").mkdir()
    shutil.copy("p/x.png", "p/deep")
    assert f"{Path('predictions/deep')} is a file" in refusal(
        capsys, predict.main, "predict.py", *given, "p"
    )
