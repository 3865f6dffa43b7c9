"""test.py: metrics against a hand count, and figures that open."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from programs import status
from torch import Tensor

import options
import test
from engine.figures import save_sheet
from model import Model

CLASSES = ["cat", "dog", "eel"]


@pytest.fixture
def judged() -> tuple[Tensor, Tensor]:
    """Six images: cats are taken for cat, cat, dog; dogs for dog, cat; no eel is ever found."""
    predicted, labels = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 2])
    scores = torch.zeros(6, 3)
    for i, (column, how_sure) in enumerate(zip(predicted, (1, 2, 3, 1, 5, 2), strict=True)):
        scores[i, column] = how_sure
    return scores, labels


def test_the_confusion_matrix_has_true_classes_as_rows(judged: tuple[Tensor, Tensor]) -> None:
    scores, labels = judged
    matrix = test.confusion_matrix(scores.argmax(dim=1), labels, 3)
    assert matrix.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def test_metrics_are_those_counted_by_hand(judged: tuple[Tensor, Tensor]) -> None:
    scores, labels = judged
    matrix = test.confusion_matrix(scores.argmax(dim=1), labels, 3)
    model = Model(options.parse(["--flip"]), {"classes": dict.fromkeys(CLASSES, 1)})
    metrics = test.summarize(scores, labels, matrix, model)
    assert metrics["images"] == 6
    assert metrics["accuracy"] == pytest.approx(3 / 6)
    by_class = metrics["classes"]
    assert [by_class[name]["images"] for name in CLASSES] == [3, 2, 1]
    assert [by_class[name]["precision"] for name in CLASSES] == pytest.approx([2 / 4, 1 / 2, 0])
    assert [by_class[name]["recall"] for name in CLASSES] == pytest.approx([2 / 3, 1 / 2, 0])
    assert metrics["macro_precision"] == pytest.approx((2 / 4 + 1 / 2) / 3)
    assert metrics["macro_recall"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert metrics["confusion"] == matrix.tolist()
    assert metrics["loss"] == pytest.approx(model.criterion(scores, labels).item())
    assert json.loads(json.dumps(metrics)) == metrics
    table = test.table(metrics)
    for text in (*CLASSES, "66.67%", "accuracy 50.00%"):
        assert text in table


def test_the_worst_mistakes_come_first(judged: tuple[Tensor, Tensor]) -> None:
    assert test.worst_mistakes(*judged) == [4, 2, 5]
    scores, labels = judged
    assert test.describe(scores[4], int(labels[4]), CLASSES) == "dog, taken for\ncat (99%)"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_the_report_lies_in_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--checkpoint={run / 'checkpoints' / 'best.pt'}", "--device=cpu", "--worst=3"]
    assert status(test.main, "test.py", *words, "--batch-size=5") == 0
    report = run / "report"
    assert {path.name for path in report.iterdir()} == {
        "metrics.json",
        "confusion.png",
        "mistakes.png",
        "batch-000000001.png",  # from the training
    }
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images"] == sum(map(sum, metrics["confusion"])) == 12
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(report / name) as figure:
            figure.load()
            assert figure.width > 20
    assert str(report) in capsys.readouterr().out


def test_the_metrics_of_the_validation_images_are_those_of_training(run: Path) -> None:
    for split in ("val", "train"):
        words = [f"--checkpoint={run}", "--device=cpu", f"--split={split}"]
        assert status(test.main, "test.py", *words) == 0
    reports = [run / f"report-{split}" / "metrics.json" for split in ("val", "train")]
    val, train = (json.loads(report.read_text(encoding="utf-8")) for report in reports)
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    assert val["accuracy"] == pytest.approx(state["best"])
    assert val["images"] + train["images"] == 24


def test_a_checkpoint_may_be_moved_and_judged_by_other_data(run: Path, images: Path) -> None:
    shutil.move(run / "checkpoints" / "best.pt", "moved.pt")
    other = Path(shutil.copytree(images, "other"))
    (other / "test" / "disc" / "0.png").unlink()
    shutil.rmtree(other / "train")  # which a judge does not need
    words = ["--checkpoint=moved.pt", f"--data={other}", "--device=cpu", "--report=there/x"]
    assert status(test.main, "test.py", *words) == 0
    assert json.loads(Path("there/x/metrics.json").read_text())["images"] == 11


def test_the_size_of_batches_and_the_workers_change_no_metric(run: Path) -> None:
    results = []
    for more in (["--batch-size=1"], ["--batch-size=12"], ["--workers=1", "--prefetch=1"]):
        words = [f"--checkpoint={run / 'checkpoints' / 'best.pt'}", "--device=cpu", "--report=r"]
        assert status(test.main, "test.py", *words, *more) == 0
        results.append(json.loads(Path("r/metrics.json").read_text()))
    for result in results[1:]:
        assert result["confusion"] == results[0]["confusion"]
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("count", [0, 1, 9, 40])
def test_sheets_show_any_number_of_images(count: int) -> None:
    images = [torch.full((3, 16, 16), 255 - i, dtype=torch.uint8) for i in range(count)]
    save_sheet(images, [f"image {i}\nof many" for i in range(count)], Path("x.png"))
    with Image.open("x.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24) or []}
    assert {(255 - i,) * 3 for i in range(count)} <= colours


@pytest.mark.parametrize("k", [1, 3, 40, 200])
def test_confusion_matrices_of_any_size_are_drawn(k: int) -> None:
    names = [f"a class with the very long name {i}" for i in range(k)]
    test.save_confusion(torch.eye(k, dtype=torch.int64) * 7, names, Path("x.png"))
    with Image.open("x.png") as figure:
        assert min(figure.size) >= 8 * k
