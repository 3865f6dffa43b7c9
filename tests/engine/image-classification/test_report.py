"""test.py: metrics against a hand count, and figures that open."""

import argparse
import json
import os
import shutil
from pathlib import Path

import example
import pytest
import torch
from marks import slow_after
from pages import check_whole
from PIL import Image
from programs import status
from torch import Tensor

import options
import test
from engine.report.common import Report
from engine.report.grids import FONT_SIZE, captioned_grid, draw_counts, save_png
from model import Model
from task.report import CONFUSION, Results, read_right, save_predictions, write_report

CLASSES = ["cat", "dog", "eel"]


@pytest.fixture
def results() -> Results:
    """Six images: cats are taken for cat, cat, dog; dogs for dog, cat; no eel is ever found."""
    predicted, labels = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 2])
    scores = torch.zeros(6, 3)
    for i, (column, how_sure) in enumerate(zip(predicted, (1, 2, 3, 1, 5, 2), strict=True)):
        scores[i, column] = how_sure
    return Results(scores, labels, [f"{i}.png" for i in range(6)], CLASSES)


def test_the_confusion_matrix_has_true_classes_as_rows(results: Results) -> None:
    assert results.matrix.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def test_metrics_are_those_counted_by_hand(results: Results) -> None:
    model = Model(options.parse(["--flip"]), {"classes": dict.fromkeys(CLASSES, 1)})
    metrics = test.summarize(results, model)
    assert metrics["images"] == 6
    assert metrics["accuracy"] == pytest.approx(3 / 6)
    by_class = metrics["classes"]
    assert [by_class[name]["images"] for name in CLASSES] == [3, 2, 1]
    assert [by_class[name]["precision"] for name in CLASSES] == pytest.approx([2 / 4, 1 / 2, 0])
    assert [by_class[name]["recall"] for name in CLASSES] == pytest.approx([2 / 3, 1 / 2, 0])
    assert metrics["macro_precision"] == pytest.approx((2 / 4 + 1 / 2) / 3)
    assert metrics["macro_recall"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert [by_class[name]["f1"] for name in CLASSES] == pytest.approx([4 / 7, 1 / 2, 0])
    assert metrics["macro_f1"] == pytest.approx((4 / 7 + 1 / 2) / 3)
    low, high = metrics["accuracy_interval"]
    assert (low, high) == pytest.approx((0.118, 0.882), abs=1e-3), "that of 3 of 6"
    assert metrics["confusion"] == results.matrix.tolist()
    loss = model.criterion(results.scores, results.labels).item()
    assert metrics["loss"] == pytest.approx(loss)
    assert json.loads(json.dumps(metrics)) == metrics
    table = test.table(metrics)
    for text in (*CLASSES, "66.67%", "accuracy 50.00%"):
        assert text in table
    assert "(95% interval 11.81% to 88.19%)" in table


def test_the_columns_of_the_table_are_aligned() -> None:
    labels = torch.arange(20) % 2
    scores = torch.nn.functional.one_hot(labels, 2).double()
    scores[0] = torch.tensor([0.0, 1.0])  # one is wrong: the recall of `second` alone is 100 %
    results = Results(scores, labels, list(map(str, range(20))), ["first", "second"])
    model = Model(options.parse(example.SMALL), {"classes": {"first": 1, "second": 1}})
    metrics = test.summarize(results, model)
    *rows, end = test.table(metrics).splitlines()
    assert any("100.00%" in row for row in rows) and len({len(row) for row in rows}) == 1
    low, high = metrics["accuracy_interval"]
    assert f"accuracy 95.00% (95% interval {low:.2%} to {high:.2%}), loss" in end


def test_the_worst_mistakes_come_first(results: Results) -> None:
    assert results.worst_mistakes() == [4, 2, 5]
    assert results.most_confident(right=False) == [4, 2, 5]
    assert results.most_confident(right=True) == [1, 0, 3]
    assert results.describe(4) == "dog, taken for\ncat (99%)"
    assert results.describe(1) == "cat (79%)"


def test_the_worst_mistake_need_not_be_the_most_confident() -> None:
    """The truth gets 9 % and 5 % of the two, what it is taken for 91 % and 48 %."""
    scores = torch.tensor([[0.91, 0.09, 1e-9], [0.48, 0.05, 0.47]]).log()
    results = Results(scores, torch.tensor([1, 1]), ["a", "b"], CLASSES)
    assert results.most_confident(right=False) == [0, 1]
    assert results.worst_mistakes() == [1, 0]


def test_calibration_by_hand() -> None:
    """Four images with 70 %, of which one is right, and two with 97 %, both right."""
    sure = torch.tensor([0.7, 0.7, 0.7, 0.7, 0.97, 0.97])
    scores = torch.stack([sure, 1 - sure], dim=1).log()
    results = Results(scores, torch.tensor([0, 1, 1, 1, 0, 0]), list("abcdef"), ["x", "y"])
    assert results.calibration_error() == pytest.approx((4 * 0.45 + 2 * 0.03) / 6, abs=1e-6)
    confidence, accuracy, counts = results.calibration()
    assert counts[10] == 4 and counts[14] == 2
    assert accuracy[10] == 0.25 and confidence[14] == pytest.approx(0.97)


def test_many_images_are_judged_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of a million images are large; their probabilities, in float64, twice as large."""
    random = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 3, generator=random), torch.arange(50) % 3
    names = [f"{i}.png" for i in range(50)]
    whole, parts = (Results(scores, labels, names, ["a", "b", "c"]) for _ in range(2))
    found = whole.confidence, whole.worst_mistakes()
    shapes: list[int] = []
    softmax = torch.Tensor.softmax

    def note(self: torch.Tensor, dim: int) -> torch.Tensor:
        shapes.append(len(self))
        return softmax(self, dim)

    monkeypatch.setattr("task.report.PART", 7)
    monkeypatch.setattr(torch.Tensor, "softmax", note)
    assert parts.confidence.equal(found[0]) and parts.worst_mistakes() == found[1]
    assert max(shapes) == 7 and sum(shapes) == 50


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_the_report_lies_in_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--checkpoint={run / 'checkpoints' / 'best.pt'}", "--device=cpu", "--worst=3"]
    assert status(test.main, "test.py", *words, "--batch-size=5") == 0
    report = run / "report"
    assert {path.name for path in report.iterdir()} == {
        "index.html",
        "metrics.json",
        "predictions.csv",
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
    here = os.path.relpath(report)
    assert capsys.readouterr().out.endswith(f"\nwrote {os.path.join(here, 'index.html')}\n")
    right = read_right(report / "predictions.csv")
    assert len(right) == 12 and sum(right.values()) == pytest.approx(12 * metrics["accuracy"])


class Black:
    """A data set of black images."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def names(self) -> list[str]:
        return self.files

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 16, 16, dtype=torch.uint8), 0


def write_page(run: Path, results: Results) -> str:
    """The page of made-up results, as if they were those of the network of `run`."""
    classes = dict.fromkeys(results.classes, 1)
    model = Model(options.parse(example.SMALL), {"classes": classes})
    words = argparse.Namespace(
        checkpoint=str(run / "checkpoints/best.pt"),
        report="made-up",
        against=None,
        data=None,
        split="test",
    )
    defaults = options.make_parser().defaults()
    judged = argparse.Namespace(checkpoint={"file": "best.pt", "digest": "sha256:0", "step": 1})
    report = Report(words, defaults, defaults, judged, Black(results.files))
    metrics = test.summarize(results, model)
    write_report(report, metrics, results, Black(results.files), 32, model.loss_name)
    return Path("made-up/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("k", [3, 30])
def test_hostile_names_are_text_on_the_page(run: Path, k: int) -> None:
    names = ["<script>alert(1)</script>", "'\"><b onload=x>", *(f"&{i};" for i in range(k - 2))]
    labels, scores = torch.arange(k), torch.eye(k).roll(1, 0)
    results = Results(scores, labels, [f"{name}/<i>.png" for name in names], names)
    page = check_whole(write_page(run, results))
    for name in names[:2]:
        assert page.texts.count(name) >= 2, "in the table of classes and among the confused"
    assert f"{names[0]}/<i>.png" in page.all("alt")


@pytest.mark.parametrize("k", slow_after(1, [5, 200]))
def test_the_page_of_many_images_is_small(run: Path, k: int) -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(10_000) % k
    scores = torch.randn(10_000, k, generator=random)
    scores[torch.arange(10_000), labels] += 2
    files = [f"a class with a long name {i % k}/an image {i}.png" for i in range(10_000)]
    names = [f"a class with a long name {i}" for i in range(k)]
    text = write_page(run, Results(scores, labels, files, names))
    assert len(text.encode()) < 3_000_000
    assert "Most confused classes" in text or k == 5
    check_whole(text)


def test_predictions_are_read_as_they_are_written() -> None:
    files = ["a,b\n.png", '"c".png', "\udcff.png"]
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    results = Results(scores, torch.tensor([0, 0, 0]), files, ["x", 'y"'])
    save_predictions(results, Path("p.csv"))
    assert read_right(Path("p.csv")) == dict(zip(files, (1.0, 0.0, 1.0), strict=True))


@pytest.mark.slow
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


@pytest.mark.slow
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
    captions = [f"image {i}\nof many" for i in range(count)]
    save_png(captioned_grid(images, captions, columns=8), Path("x.png"))
    with Image.open("x.png") as sheet:
        assert min(sheet.size) > 50
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24) or []}
    assert {(255 - i,) * 3 for i in range(count)} <= colours


@pytest.mark.parametrize("k", [1, 3, 40, 200])
def test_confusion_matrices_of_any_size_are_drawn(k: int) -> None:
    names = [f"a class with the very\nlong name {i}" for i in range(k)]
    counts = torch.eye(k, dtype=torch.int64) * 7
    save_png(draw_counts(counts, names, "a title", most=CONFUSION), Path("x.png"))
    with Image.open("x.png") as figure:
        assert min(figure.size) >= FONT_SIZE * k, "the names are below each other"
