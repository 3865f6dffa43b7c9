"""What engine/ asks of a task is enough for others: segmentation, and several labels an image.

A data set and a model of each take the place of those of a classification project, whose train.py,
options.py, export.py and engine/ stay as they are. Those for several labels are printed in
docs/task.md, those for segmentation are in tests/contracts/.
"""

import csv
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Project
from forked import forget_projects
from PIL import Image
from sklearn.metrics import average_precision_score
from test_processes import assert_same, run_to_the_end

MONITOR = {"segmentation": "miou", "multilabel": "map"}
DELETED = ("dataset", "losses", "options", "layers", "notebook")
PRINTED = ("dataset", "options", "model", "predict", "test", "tests/example")  # in docs/task.md
FLAGS = ["--data=shapes", "--width=6", "--batch-size=3", "--accumulate=4", "--lr=0.02"]
FLAGS += ["--epochs=3", "--flip", "--log-every=1", "--save-every=1", "--keep=100", "--threads=1"]
FLAGS += ["--device=cpu", "--precision=fp32", "--img-size=16"]


def draw(kind: str, folder: Path) -> None:
    """Draws grey noise with a bright disc, a dark bar and a white frame in some of the images."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    for split, count in (("train", 48), ("test", 8)):
        lines = [["file", "labels"]]
        for i in range(count):
            pixels, mask = random.integers(90, 150, (16, 16, 3)), np.zeros((16, 16), np.uint8)
            labels = random.integers(0, 2, 3) if kind == "multilabel" else np.array([1, 1, 0])
            disc = (x - random.integers(4, 12)) ** 2 + (y - random.integers(4, 12)) ** 2 < 12
            bar = abs(y - random.integers(2, 14)) < 2
            frame = (np.minimum(x, y) < 1) | (np.maximum(x, y) > 14)
            for index, part in enumerate((disc, bar, frame)):
                if labels[index]:
                    pixels[part] = (230, 20, 255)[index]
                    mask[part] = index + 1
            name = f"{i:02d}.png"
            place = folder / split / ("images" if kind == "segmentation" else "")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / name)
            shown = zip(("disc", "bar", "frame"), labels, strict=True)
            lines.append([name, ";".join(label for label, here in shown if here)])
            if kind == "segmentation":
                (folder / split / "masks").mkdir(exist_ok=True)
                palette = Image.fromarray(mask, mode="P")
                palette.putpalette([0, 0, 0, 200, 30, 30, 30, 30, 200])
                palette.save(folder / split / "masks" / name)
        if kind == "multilabel":
            with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(lines)


@pytest.fixture(scope="module", params=MONITOR)
def kind(
    request: pytest.FixtureRequest,
    bake: Callable[..., Project],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The name of a task; the current folder is a project of it, with a run on one process."""
    copy = tmp_path_factory.mktemp("contracts") / "project"
    shutil.copytree(bake(accelerator="cpu").path, copy)
    if request.param == "segmentation":
        for path in (ROOT / "tests/contracts/segmentation").glob("*.py"):
            shutil.copy(path, copy)
    else:
        printed = re.findall(r"```python\n(.*?)```", (copy / "docs/task.md").read_text(), re.DOTALL)
        for name, code in zip(PRINTED, printed, strict=True):
            (copy / f"{name}.py").write_text(code)
    draw(request.param, copy / "shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        run_to_the_end(1, [*FLAGS, "--run-dir=runs/one"])
        yield request.param


def validations(run: Path) -> list[dict[str, Any]]:
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [point for point in points if point["split"] == "val"]


def test_the_best_checkpoint_is_chosen_by_the_tasks_own_metric(kind: str) -> None:
    found = {point["n_iter"]: point["values"] for point in validations(Path("runs/one"))}
    best = torch.load("runs/one/checkpoints/best.pt", weights_only=True)
    values = {step: metrics[MONITOR[kind]] for step, metrics in found.items()}
    assert best["best"] == max(values.values()) == values[best["n_iter"]] > 0.3
    assert max(values.values()) > min(values.values())


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_and_a_resume_give_the_same_bits(kind: str, size: int) -> None:
    run = Path(f"runs/on-{size}")
    shutil.copytree("runs/one", run)
    for path in (run / "checkpoints").glob("*.pt"):
        if path.stem not in ("iter-000000001", "iter-000000002"):
            path.unlink()  # as after a kill in the third step
    run_to_the_end(size, [*FLAGS, f"--run-dir={run}", "--resume"])
    assert_same(Path("runs/one"), run)


def test_another_metric_may_choose(kind: str) -> None:
    run_to_the_end(1, [*FLAGS, "--run-dir=runs/loss", "--monitor=loss"])
    best = torch.load("runs/loss/checkpoints/best.pt", weights_only=True)
    assert best["best"] == min(point["values"]["loss"] for point in validations(Path("runs/loss")))


def test_the_export_predicts_as_the_checkpoint_does(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    project = Project(Path.cwd())
    words = ["--checkpoint=runs/one", "--format=onnx", "--out=model.onnx"]
    exported = project.run("python", "export.py", *words)
    assert exported.returncode == 0, exported.stderr
    assert "largest difference" in exported.stdout
    if kind == "multilabel":
        for model in ("runs/one", "model.onnx"):
            words = [f"--checkpoint={model}", f"--out={Path(model).name}.csv", "--precision=fp32"]
            predicted = project.run("python", "predict.py", *words, "shapes/test")
            assert predicted.returncode == 0, predicted.stderr
        one, other = (
            list(csv.reader(Path(name).read_text().splitlines()))
            for name in ("one.csv", "model.onnx.csv")
        )
        assert one[0] == other[0] == ["file", "labels", "bar", "disc", "frame"]
        assert len(one) == len(other) == 9
        for row, same in zip(one[1:], other[1:], strict=True):
            assert row[:2] == same[:2]
            shares = [float(cell) for cell in row[2:]]
            assert [float(cell) for cell in same[2:]] == pytest.approx(shares, abs=1e-5)
            assert row[1] == ";".join(n for n, p in zip(one[0][2:], shares, strict=True) if p > 0.5)


def test_the_printed_report_is_written(kind: str) -> None:
    if kind == "segmentation":
        pytest.skip("has no test.py of its own")
    project = Project(Path.cwd())
    tested = project.run("python", "test.py", "--checkpoint=runs/one", "--device=cpu")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads(Path("runs/one/report/metrics.json").read_text())
    assert metrics["images"] == 8 and 0.3 < metrics["map"] <= 1
    page = Path("runs/one/report/index.html").read_text()
    assert "mean average precision" in page and "The images of the highest loss" in page
    refused = project.run("python", "test.py", "--checkpoint=runs/one", "--against=runs/one")
    assert refused.returncode == 2 and "--against" in refused.stderr


def test_the_projects_tests_that_stay_pass_after_the_page(kind: str, full: bool) -> None:
    """As an owner has followed docs/task.md, with all that it names deleted."""
    if kind == "segmentation" or not full:
        pytest.skip("docs/task.md prints the other task; `make stress` has it")
    copy = Path("changed")
    gone = ("explore.ipynb", "*_data.py", "folds.py")
    ignored = shutil.ignore_patterns("shapes", "runs", "task", *gone)
    shutil.copytree(Path.cwd(), copy, ignore=ignored)
    for name in ("losses", "networks", *(f"tests/test_{one}" for one in DELETED)):
        (copy / f"{name}.py").unlink()
    words = ["-v", "-p", "no:cacheprovider", "-m", "not slow"]
    tested = Project(copy).run("python", "-m", "pytest", *words, OMP_NUM_THREADS="1")
    assert tested.returncode == 0, tested.stdout[-4000:]
    skipped = re.findall(r"(?m)^(tests/\S+?\.py)::.* SKIPPED", tested.stdout)
    assert set(skipped) == {"tests/test_presets.py"}, "those with options that are gone"
    typed = Project(copy).run("python", "-m", "mypy", ".", OMP_NUM_THREADS="1")
    assert typed.returncode == 0, typed.stdout


def test_the_metrics_are_those_of_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_projects()
    monkeypatch.syspath_prepend(str(Path.cwd()))
    model = importlib.import_module("model")
    random = torch.Generator().manual_seed(0)
    if kind == "multilabel":
        scores = torch.randint(9, (50, 3), generator=random).float()  # some are equal
        labels = torch.randint(2, (50, 3), generator=random).float()
        wanted = average_precision_score(labels, scores, average="macro")
        totals = {"loss": torch.tensor(1.0), "scores": scores, "labels": labels}
        found = model.Model.compute_metrics(None, totals, 50)["map"]
    else:
        masks = torch.randint(3, (2, 900), generator=random)
        pairs = [((masks == k).all(0).sum() / (masks == k).any(0).sum()) for k in range(3)]
        wanted = float(torch.stack(pairs).mean())
        table = (masks[0] * 3 + masks[1]).bincount(minlength=9)
        own = model.Model(
            importlib.import_module("options").parse(FLAGS),
            {"classes": ["a", "b", "c"], "pixels": [1, 1, 1]},
        )
        totals = {"loss": torch.tensor(1.0), "confusion": table}
        found = own.compute_metrics(totals, 2)["miou"]
    assert found == pytest.approx(wanted, abs=1e-6)
    forget_projects()
