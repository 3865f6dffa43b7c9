"""From a run to its report, its predictions and its exported model, as a user goes through them."""

import json
import shutil
from pathlib import Path

import pytest
from needs import FORMATS
from programs import points, refusal, status, train_refuses

import export
import predict
import test


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that came to its end."""
    return shutil.copytree(finished, tmp_path / "run")


def predicted(model: Path, images: Path, out: str) -> str:
    """The whole of what predict.py writes for all images."""
    words = [f"--checkpoint={model}", "--device=cpu", f"--out={out}", str(images)]
    assert status(predict.main, "predict.py", *words) == 0
    written = [Path(out)] if Path(out).is_file() else sorted(Path(out).rglob("*.*"))
    return "\n".join(f"{path}: {path.stat().st_size}" for path in written)


def test_a_report_of_the_best_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(test.main, "test.py", f"--checkpoint={run}", "--device=cpu") == 0
    found = json.loads((run / "report/metrics.json").read_text(encoding="utf-8"))
    assert found.keys() & points(run)[-1]["values"].keys(), "no metric of the training"
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "<script" not in page
    assert "error" not in capsys.readouterr().err


def test_predictions_need_the_checkpoint_alone(run: Path, images: Path) -> None:
    moved = shutil.move(run / "checkpoints/best.pt", "moved.pt")
    shutil.rmtree(run)
    assert predicted(Path(moved), images, "predictions")


@pytest.mark.parametrize("form", FORMATS)
def test_an_exported_model_is_that_of_the_checkpoint(run: Path, images: Path, form: str) -> None:
    """export.py compares the two on random images, and writes nothing if they differ."""
    out = Path(f"model.{form}")
    words = [f"--checkpoint={run}", f"--format={form}", f"--out={out}"]
    assert status(export.main, "export.py", *words) == 0
    assert out.stat().st_size > 1000
    if form == "onnx":
        assert predicted(out, images, "predictions")


def test_a_mistake_ends_in_one_line_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], small: list[str], checkpoint: Path
) -> None:
    assert "nowhere" in train_refuses(capsys, *small, "--data=nowhere")
    assert "--epochs" in train_refuses(capsys, *small, "--epochs=many")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    words = [f"--checkpoint={checkpoint}", "--device=cpu"]
    assert "damaged" in refusal(capsys, test.main, "test.py", *words)
