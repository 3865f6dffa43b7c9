"""export.py: the file computes what the checkpoint does, or there is none."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_after
from needs import FORMATS, OLD
from programs import files, refusal, status
from safetensors.torch import load_file
from torch import Tensor

import export
import predict
from engine.inference.export import LIMIT
from engine.inference.exported import FORMAT_VERSION, open_exported
from model import Model


def best(finished: Path) -> str:
    return f"--checkpoint={finished / 'checkpoints' / 'best.pt'}"


@pytest.fixture(scope="module", params=FORMATS)
def exported(
    request: pytest.FixtureRequest, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The checkpoint of the finished run, exported; tests leave it as it is."""
    out = tmp_path_factory.mktemp("exported") / f"model.{request.param}"
    words = [best(finished), f"--format={request.param}", f"--out={out}"]
    assert status(export.main, "export.py", *words) == 0
    return out


def opened(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """A function that runs an exported file, and its metadata."""
    if path.suffix == ".onnx":
        found, metadata = open_exported(path)
        return found, metadata
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return torch.no_grad()(program.module()), json.loads(extra["metadata.json"])


def batch(metadata: dict[str, Any], n: int) -> Tensor:
    random = torch.Generator().manual_seed(n)
    side = metadata["image_size"]
    size = (side, side) if side else (20 + n, 50 - n)
    return torch.randint(256, (n, 3, *size), generator=random, dtype=torch.uint8)


def test_a_file_computes_what_the_checkpoint_does(exported: Path, finished: Path) -> None:
    """Also for images whose channels come last, as predict.py has them."""
    run, metadata = opened(exported)
    model, _ = Model.from_checkpoint(str(finished / "checkpoints" / "best.pt"))
    for n in (1, 2, 17):
        images = batch(metadata, n)
        wanted = model.predict(images)
        unit = metadata["range"]
        assert wanted.dtype == torch.float32 and wanted.std() > 0
        for order in (torch.contiguous_format, torch.channels_last):
            found = run(images.contiguous(memory_format=order))
            assert found.shape == wanted.shape
            assert (found - wanted).abs().max() <= LIMIT * unit


def test_what_predictions_need_is_in_the_file(exported: Path, finished: Path) -> None:
    _, metadata = opened(exported)
    model, opt = Model.from_checkpoint(str(finished / "checkpoints" / "best.pt"))
    assert metadata["format_version"] == FORMAT_VERSION
    assert metadata["model"] == type(model).__name__
    assert model.describe_output(opt).items() <= metadata.items()
    assert metadata["options"]["img_size"] == opt.img_size
    assert str(opt.data) not in json.dumps(metadata), "a path of this machine"


@pytest.mark.slow
def test_the_difference_is_told_and_the_images_are_named(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without test/, random ones."""
    words = [best(finished), "--format=pt2", "--out=model.pt2"]
    assert status(export.main, "export.py", *words) == 0
    told = capsys.readouterr().out
    assert "largest difference " in told and f"images of {images / 'test'}" in told
    (images / "test").rename(images / "away")
    try:
        assert status(export.main, "export.py", *words) == 0
    finally:
        (images / "away").rename(images / "test")
    assert "random images, as there are none in" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["pt2", pytest.param("onnx", marks=[OLD, pytest.mark.slow])])
@pytest.mark.parametrize("error", slow_after(1, [0.1, float("nan")]))
def test_a_file_that_differs_is_not_written(
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    error: float,
) -> None:
    """The network computes something else while it is exported."""
    right = Model.predict

    def wrong(model: Model, images: Tensor) -> Tensor:
        outputs = right(model, images)
        return outputs + error if torch.compiler.is_compiling() else outputs

    monkeypatch.setattr(Model, "predict", wrong)
    Path(f"model.{form}").write_text("format_version, RGB in [0, 255]: the one before")
    before = files()
    words = [best(finished), f"--format={form}", f"--out=model.{form}"]
    assert status(export.main, "export.py", *words) == 1
    line = capsys.readouterr().err
    assert f"model.{form}: not written" in line and line.count("\n") == 1
    assert files() == before


def test_a_network_that_cannot_be_exported(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Model.predict

    def deciding(model: Model, images: Tensor) -> Tensor:
        return right(model, images if images.float().mean() > 0 else 255 - images)

    monkeypatch.setattr(Model, "predict", deciding)
    words = [best(finished), "--format=pt2", "--out=model.pt2"]
    assert "cannot export this network" in refusal(capsys, export.main, "export.py", *words)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = [best(finished), "--format=onnx", "--out=model.onnx"]
    line = refusal(capsys, export.main, "export.py", *words)
    assert f"{package} is not installed" in line and "pip install" in line


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ([], "--format"),
        (["--format=jit"], "--format"),
        (["--format=onnx", "--out=model.pt2"], ".onnx"),
        (["--format=pt2", "--out=nowhere/model.pt2"], "nowhere"),
        (["--format=pt2", "--out=folder.pt2"], "folder.pt2"),
    ],
    ids=str,
)
def test_options_of_export_that_cannot_be_used(
    finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    Path("folder.pt2").mkdir()
    assert culprit in refusal(capsys, export.main, "export.py", best(finished), *words)


def test_the_averaged_weights_are_exported_and_can_be_trained_on(
    checkpoint: Path, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    average = {
        name: value * 0.5 if value.is_floating_point() else value
        for name, value in state["net"].items()
    }
    torch.save({**state, "ema": {"net": average}}, checkpoint)
    words = [f"--checkpoint={checkpoint}", "--format=safetensors"]
    assert status(export.main, "export.py", *words) == 0
    weights = load_file(checkpoint.with_suffix(".safetensors"))
    assert weights.keys() == average.keys()
    assert all(weights[name].equal(average[name]) for name in weights)
    metadata = json.loads(checkpoint.with_suffix(".json").read_text())
    assert metadata["options"]["img_size"] == state["args"]["img_size"]
    assert metadata["output"] and metadata["options"].items() <= state["args"].items()
    capsys.readouterr()
    assert train("run", f"--weights={checkpoint.with_suffix('.safetensors')}") == 0
    count = len(average)
    assert f"weights: {count} of {count} tensors of net" in capsys.readouterr().out
    words = [f"--checkpoint={checkpoint.with_suffix('.safetensors')}", "x.png"]
    assert "weights alone" in refusal(capsys, predict.main, "predict.py", *words)


@OLD
def test_a_file_that_cannot_be_run(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint=model.onnx", str(images / "test")]
    assert "no such file" in refusal(capsys, predict.main, "predict.py", *words)
    Path("model.onnx").write_text("no model")
    assert "damaged" in refusal(capsys, predict.main, "predict.py", *words)
    assert "cuda" in refusal(capsys, predict.main, "predict.py", *words, "--device=cuda")
    assert "bf16" in refusal(capsys, predict.main, "predict.py", *words, "--precision=bf16")


@pytest.mark.slow
@OLD
def test_a_file_of_another_program_or_project(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    words = [best(finished), "--format=onnx", "--out=model.onnx"]
    assert status(export.main, "export.py", *words) == 0
    content = onnx.load("model.onnx")
    other = {"format_version": FORMAT_VERSION, "model": "Other", "classes": [], "options": {}}
    words = ["--checkpoint=model.onnx", str(images / "test")]
    for culprit, text in {"export it again": "{}", "Other": json.dumps(other)}.items():
        (entry,) = content.metadata_props
        entry.value = text
        onnx.save(content, "model.onnx")
        assert culprit in refusal(capsys, predict.main, "predict.py", *words)


def test_a_pt2_file_is_not_opened_since_that_can_run_code(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    torch.export.save(program, "model.pt2")
    monkeypatch.setattr(torch.export, "load", lambda *args, **kwargs: pytest.fail("opened"))
    words = ["--checkpoint=model.pt2", str(images / "test")]
    assert "can run code" in refusal(capsys, predict.main, "predict.py", *words)
