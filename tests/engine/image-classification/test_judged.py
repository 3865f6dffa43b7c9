"""Reports of test.py and comparisons: of which weights, of which images, with which names."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import example
import pytest
import torch
from conftest import Train
from pages import check_whole
from PIL import Image
from programs import refusal, status

import export
import options
import predict
import test
from engine.checkpoint import digest_of
from engine.report.common import compare_images, digest_images, interval, json_text, share_interval
from engine.report.records import read_judged, read_metrics
from model import Model
from task.report import Results
from tools import compare

DEVICE = "--device=cpu"


def judge(run: str, *words: str, page: bool = False) -> dict[str, Any]:
    """Runs test.py, without the page and its pictures unless a test looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr(test, "write_report", lambda *report: None)
        assert status(test.main, "test.py", f"--checkpoint={run}", DEVICE, *words) == 0
    return read_metrics(Path(run) / "report")


def compared(capsys: pytest.CaptureFixture[str], *runs: str) -> tuple[list[list[str]], str]:
    """The cells of the table that tools.compare prints, and its warnings."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "curves_section", lambda *runs, **pairs: "")
        assert status(compare.main, "compare.py", *runs, "--out=compare.html") == 0
    out, err = capsys.readouterr()
    return [[cell for cell in line.split("  ") if cell] for line in out.splitlines()[:-1]], err


@pytest.fixture
def run(finished: Path) -> str:
    return str(shutil.copytree(finished, "run"))


@pytest.fixture
def changed(images: Path) -> Path:
    """The same data with other pixels in a test image, under the same names."""
    other = Path(shutil.copytree(images, "other/images"))
    first = min((other / "test").rglob("*.png"))
    Image.new("RGB", (16, 16), "red").save(first)
    return other


# Which weights, which images.


def test_metrics_say_what_they_are_of(run: str, images: Path) -> None:
    metrics = judge(run)
    best = Path("run/checkpoints/best.pt")
    state = torch.load(best, weights_only=True)
    assert metrics["checkpoint"] == {
        "file": str(best),
        "digest": digest_of(best),
        "step": state["n_iter"],
    }
    assert metrics["data"]["folder"] == str(images.resolve()) and metrics["data"]["split"] == "test"
    assert metrics["data"]["digest"].startswith("sha256:")
    torch.save(state, "saved_again.pt")  # by others, without a seal
    assert digest_of(Path("saved_again.pt")).startswith("sha256:")


def test_images_are_known_by_their_content(build: Any, images: Path, changed: Path) -> None:
    moved = shutil.copytree(images, "moved")
    digests = {
        digest_images(build(f"--data={data}", more).val_set)
        for data in (images, moved)
        for more in ("--img-size=16", "--img-size=8")
    }
    assert len(digests) == 1
    image = min((changed / "train").rglob("*.png"))
    for path in (changed / "train").rglob("*.png"):
        Image.new("RGB", (16, 16), "red").save(path)
    assert digest_images(build(f"--data={changed}").val_set) not in digests and image.exists()


def test_a_result_of_other_weights_is_marked(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on after the test; and a report from before metrics.json said it."""
    assert train("a", "--epochs=1") == 0
    step = judge("a")["checkpoint"]["step"]
    _, row = compared(capsys, "a")[0]
    assert "of step" not in row[2]
    shutil.rmtree("b", ignore_errors=True)
    assert train("b", "--epochs=2", "--seed=3") == 0
    shutil.copy("b/checkpoints/best.pt", "a/checkpoints/best.pt")
    assert f" of step {step}" in "  ".join(compared(capsys, "a")[0][1])
    words = ["--checkpoint=b", DEVICE, "--against=a"]
    error = refusal(capsys, test.main, "test.py", *words)
    assert f"its report is of step {step} and not of its best.pt" in error
    words = ["--checkpoint=b", DEVICE, "--report=a/report"]
    assert "is that of another run" in refusal(capsys, test.main, "test.py", *words)
    os.remove("a/checkpoints/best.pt")
    assert f" of step {step}" in "  ".join(compared(capsys, "a")[0][1])
    Path("a/report/metrics.json").write_text('{"images": 12, "accuracy": 0.5}')
    assert compared(capsys, "a")[0][1][2].strip() == "-"


@pytest.mark.slow
def test_results_of_other_images_are_marked_and_not_compared_by_image(
    run: str, changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, "second")
    judge(run)
    judge("second", f"--data={changed}", "--report=second/report")
    rows, warning = compared(capsys, run, "second")
    assert rows[0][3].strip() == "test images" and rows[1][3] != rows[2][3]
    assert "warning: the test results are of different images" in warning
    words = [f"--checkpoint={run}", DEVICE, "--against=second"]
    error = refusal(capsys, test.main, "test.py", *words)
    assert "its report is of other images" in error and str(changed.resolve()) in error
    shutil.rmtree("second/report")
    judge("second")
    rows, warning = compared(capsys, run, "second")
    assert rows[0][3].strip() == "steps" and not warning
    judge(run, "--against=second")


@pytest.mark.slow
def test_the_report_to_compare_with_is_found_by_its_images(run: str, changed: Path) -> None:
    """Whatever the name of its folder is in the other run."""
    shutil.copytree(run, "second")
    judge("second")
    judge("second", f"--data={changed}")
    folder = Path("second/report-images")
    assert read_judged(folder)["digest"] != read_judged(Path("second/report"))["digest"]
    judge(run, f"--data={changed}", "--against=second", "--report=there")


# Records that are damaged or of another program.


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "[]", "null", "3", '"x"', '{"images": null}', "[" * 100_000, "\udcff\x00"),
        '{"images": 3, "accuracy": "high", "checkpoint": [], "data": 3}',
        '{"images": 3, "accuracy": null, "checkpoint": {"digest": []}, "data": {"digest": {}}}',
        '{"images": 3, "accuracy": 1e999, "checkpoint": {"step": {}}, "data": {"split": "test"}}',
    ],
)
def test_other_metrics_are_a_dash(run: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/report").mkdir(exist_ok=True)
    Path("run/report/metrics.json").write_bytes(os.fsencode(text))
    line = '{"n_iter": 3, "epoch": 1, "split": "val", "seconds": %s, "values": {"accuracy": %s}}'
    values = ["null", '"x"', "[]", "true", "NaN", "1e400", "1" + 400 * "0", "{}"]
    points = "\n".join(line % (value, value) for value in values)
    starts = '{"n_iter": -3, "split": "val", "values": {}}\n{"n_iter": true, "split": 3}\n3\n'
    Path("run/metrics.jsonl").write_text(starts + points + "\n" + line % ("1", "0.25"))
    _, row = compared(capsys, "run")[0]
    assert [cell.strip() for cell in row] == ["run", "0.2500", "-", "3", "1 s"]


@pytest.mark.slow
def test_a_report_of_other_types_is_compared_with(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, "second")
    metrics = judge("second", page=True) | {"accuracy": None}
    Path("second/report/metrics.json").write_text(json.dumps(metrics))
    Path("second/report/predictions.csv").write_bytes(b'file,class\n"\x00\n' + b"x" * 200_000)
    judge(run, "--against=second", page=True)
    assert "Against second (-): That report lists other images" in capsys.readouterr().out


def test_folders_that_are_no_runs_are_left_out(
    run: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcd":
        Path(f"x{name}").mkdir()
    rows, warning = compared(capsys, "xa", run, "xb", "xc", "xd", "nowhere")
    assert len(rows) == 2
    assert warning == "warning: left out, as no runs: xa, xb, xc and 2 more\n"


@pytest.mark.slow
def test_a_table_of_metrics_is_a_line_for_each_row() -> None:
    text = json_text({"a": float("nan"), "ends": (0.5, 1), "rows": [[1, 2], [3, float("inf")]]})
    lines = ["{", '  "a": null,', '  "ends": [0.5, 1],', '  "rows": [']
    assert text.splitlines() == [*lines, "    [1, 2],", "    [3, null]", "  ]", "}"]
    k = 1000
    table = torch.eye(k).long().tolist()
    text = json_text({"confusion": table, "classes": {str(i): {} for i in range(k)}})
    assert text.count("\n") < 2010 and len(json.loads(text)["confusion"]) == k


# Intervals.


def test_intervals_have_a_width_where_all_are_equal() -> None:
    assert share_interval(24, 24) == pytest.approx((0.858, 1), abs=1e-3)
    assert share_interval(12, 12) == pytest.approx((0.735, 1), abs=1e-3)
    assert share_interval(0, 24) == pytest.approx((0, 0.142), abs=1e-3)
    assert share_interval(1, 1) == pytest.approx((0.025, 1)) and share_interval(0, 1)[0] == 0
    for count in (1, 2, 5, 24, 300):
        ends = [share_interval(right, count) for right in range(count + 1)]
        assert ends == sorted(ends) and all(low < high for low, high in ends)
    assert interval(torch.full((24,), 7.0).numpy()) is None


def test_paired_intervals_have_a_width_where_all_are_equal() -> None:
    ones, zeros = (dict.fromkeys(map(str, range(12)), value) for value in (1.0, 0.0))
    better = compare_images(ones, zeros, "points", scale=100)
    assert better.startswith("Better: +100.00 points, 95 % interval +62.65 to +100.00")
    same = compare_images(ones, ones, "points", scale=100)
    assert same.startswith("No clear difference: +0.00 points, 95 % interval -14.00 to +14.00")
    one = {"a": 1.0}
    assert "No clear difference" in compare_images(one, {"a": 0.0}, "points"), "one image is few"
    found = compare_images(dict.fromkeys(ones, 30.5), dict.fromkeys(ones, 30.0), "dB")
    assert found == (
        "Better: +0.50 dB on each of the same 12 images; of other images up to 26.5 % may differ "
        "(95 % limit)."
    )


def test_the_report_of_24_right_images(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.arange(24) % 3
    results = Results(torch.eye(3)[labels], labels, list(map(str, range(24))), list("abc"))
    model = Model(options.parse(example.SMALL), {"classes": dict.fromkeys("abc", 1)})
    metrics = test.summarize(results, model)
    assert "accuracy 100.00% (95% interval 85.75% to 100.00%)" in test.table(metrics)


# Classes without images, and of any name.


def test_a_class_without_test_images_has_a_dash() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    scores = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    results = Results(scores, labels, list("wxyz"), ["cat", "dog", "eel"])
    model = Model(options.parse(example.SMALL), {"classes": dict.fromkeys(results.classes, 1)})
    metrics = test.summarize(results, model)
    assert metrics["classes"]["eel"] == {"images": 0, "precision": None, "recall": None, "f1": None}
    assert metrics["macro_recall"] == pytest.approx(0.75)
    assert metrics["macro_precision"] == pytest.approx(1.0)
    (row,) = (line for line in test.table(metrics).splitlines() if line.startswith("eel"))
    assert row.split() == ["eel", "0", "-", "-"]
    assert "NaN" not in json_text(metrics)


HOSTILE = [("$5_$10^", "a\nb\u2029\x85\x1c", "\x1b[31mred"), ("\udcff", "猫", "\u202e$$ $")]


@pytest.mark.slow
@pytest.mark.parametrize("names", HOSTILE, ids=ascii)
def test_classes_of_any_name_are_trained_tested_and_predicted(
    names: tuple[str, str, str],
    images: Path,
    train: Train,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    shutil.copytree(images, "data")
    for split in Path("data").iterdir():
        for folder, name in zip(sorted(split.glob("[a-z]*")), names, strict=False):
            folder.rename(split / name)
    assert train("run", "--epochs=1", "--data=data") == 0
    judge("run", page=True)
    words = ["--checkpoint=run", DEVICE, "data/test"]
    assert status(predict.main, "predict.py", *words) == 0
    assert status(compare.main, "compare.py", "run") == 0
    out, err = capsys.readouterr()
    assert err == "" and not recwarn.list
    assert not set(out) & set("\x1b\x85\x1c\u2029\u202e\udcff")
    assert list(read_metrics(Path("run/report"))["classes"]) == sorted(names)
    check_whole(Path("run/report/index.html").read_text(encoding="utf-8"))
    for picture in ("confusion.png", "mistakes.png"):
        with Image.open(f"run/report/{picture}") as file:
            file.load()


@pytest.mark.parametrize("broken", ["captioned_grid", "draw_counts", "image"])
def test_a_picture_that_fails_costs_no_page(
    run: str,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*words: Any, **more: Any) -> None:
        raise RuntimeError("no figure today")

    monkeypatch.setattr(f"task.report.{broken}", fail)
    monkeypatch.setattr("engine.report.common.draw_chart", fail)
    assert judge(run, page=True)["images"] == 12
    out, err = capsys.readouterr()
    assert "accuracy" in out and err.count("no figure today") == len(err.splitlines()) >= 2
    page = check_whole(Path("run/report/index.html").read_text(encoding="utf-8"))
    assert {"Curves", "Calibration", "Confusion matrix", "-"} <= set(page.texts)
    assert Path("run/report/predictions.csv").is_file()


# What programs write over.


@pytest.mark.slow
def test_predictions_replace_no_other_file(
    run: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images / "test", "photos")
    first = min(Path("photos").rglob("*.png"))
    os.link(first, "hard.csv")
    Path("soft.csv").symlink_to("run/checkpoints/best.pt")
    Path("run/table.csv").write_text("file,class,predicted,probability\n")  # of test.py
    Path("run/notes.csv").write_text("file,class,probability,checked by me\n")
    names = ["run/notes.csv", str(first), "hard.csv", "soft.csv", "run/checkpoints/best.pt"]
    for name in [*names, "photos", "run/table.csv", "run/config.txt"]:
        words = [f"--checkpoint={run}", DEVICE, "photos", f"--out={name}"]
        assert f"--out {name}: " in refusal(capsys, predict.main, "predict.py", *words)


@pytest.mark.slow
def test_predictions_on_standard_output_are_alone_there(
    run: str, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"--checkpoint={run}", DEVICE, str(images / "test")]
    assert status(predict.main, "predict.py", *words) == 0
    capfd.readouterr()
    assert status(predict.main, "predict.py", *words, "--out=-") == 0
    out, err = capfd.readouterr()
    assert out == Path("predictions.csv").read_text() and not Path("-").exists()
    assert "wrote -: 12 images" in err and sys.stdout is not sys.stderr
    assert status(predict.main, "predict.py", *words) == 0
    assert "wrote predictions.csv" in capfd.readouterr().out


def test_exported_files_replace_no_other_file(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dataset.json").write_text('{"flip": false}')
    os.link("dataset.json", "model.json")
    for form, name in (("safetensors", "dataset"), ("safetensors", "model"), ("onnx", "foreign")):
        Path(f"foreign.{form}").write_text("of another program")
        words = [f"--checkpoint={run}", f"--format={form}", f"--out={name}.{form}"]
        error = refusal(capsys, export.main, "export.py", *words)
        assert "name another file" in error
    assert not Path("dataset.safetensors").exists()
    words = [f"--checkpoint={run}", "--format=safetensors", "--out=own.safetensors"]
    for _ in range(2):
        with warnings.catch_warnings():
            assert status(export.main, "export.py", *words) == 0
    Path("own.safetensors").write_text("of another program")
    assert "own.safetensors: " in refusal(capsys, export.main, "export.py", *words)


def test_a_page_replaces_no_other_file(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/page.html").write_text("<!DOCTYPE html>\n<title>Report: run</title>")  # of test.py
    Path("mine.html").write_text("<html>my page")
    for name in ("mine.html", "run/page.html", "run/checkpoints/best.pt", "run"):
        error = refusal(capsys, compare.main, "compare.py", run, f"--out={name}")
        assert f"--out {name}: " in error
    for _ in range(2):
        compared(capsys, run)
