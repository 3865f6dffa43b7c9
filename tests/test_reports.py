"""The report of test.py: numbers against those of other libraries, the page against HTML5."""

import json
from collections.abc import Callable
from pathlib import Path

import html5lib
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional.classification as theirs
from conftest import SMALL, TASKS, Project
from test_properties import load

results, common = load("task.report", "engine.report.common")
TINY = {
    "image-classification": SMALL,
    "image-to-image": [
        *("--img-size=16", "--width=4", "--blocks=0", "--batch-size=8", "--crops=4", "--epochs=1"),
        *("--d-width=4", "--d-layers=1", "--d-scales=1", "--workers=0", "--device=cpu"),
    ],
}

# Names that `rename_hostile` gives, as the page has to have them.
HOSTILE = {
    "image-classification": "&lt;script&gt;alert(7)&lt;",
    "image-to-image": "onerror=a&gt;&amp;amp;",
}


@pytest.mark.parametrize("seed", range(20))
def test_numbers_are_those_of_scikit_learn_and_torchmetrics(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    k, n = int(torch.randint(2, 30, (), generator=random)), 400
    labels = torch.randint(k, (n,), generator=random)
    labels[:k] = torch.arange(k)  # test.py refuses a class without images
    scores = torch.randn(n, k, generator=random)
    scores[torch.arange(n), labels] += 1.5
    names = [str(i) for i in range(k)]
    found = results.Results(scores, labels, [f"{i}.png" for i in range(n)], names)
    truth, predicted = labels.numpy(), found.predicted.numpy()
    assert (found.matrix.numpy() == sklearn.metrics.confusion_matrix(truth, predicted)).all()
    assert float(found.right.double().mean()) == pytest.approx(
        sklearn.metrics.accuracy_score(truth, predicted)
    )
    for name in ("precision", "recall", "f1"):
        score = getattr(sklearn.metrics, f"{name}_score")
        wanted = score(truth, predicted, average=None, zero_division=0)
        assert found.by_class()[name].numpy() == pytest.approx(wanted)
        macro = score(truth, predicted, average="macro", zero_division=0)
        assert float(found.by_class()[name].mean()) == pytest.approx(macro)
    error = theirs.multiclass_calibration_error(scores.double(), labels, k, n_bins=results.BINS)
    assert found.calibration_error() == pytest.approx(float(error), abs=1e-6)


def test_the_interval_is_that_of_scipy() -> None:
    """Of its percentile bootstrap; the resamples are others, so the ends differ a little."""
    values = np.random.default_rng(0).random(400) < 0.7
    wanted = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", random_state=1
    ).confidence_interval
    assert common.interval(values) == pytest.approx((wanted.low, wanted.high), abs=0.006)


@pytest.mark.parametrize("count", [1, 12, 24, 355, 50_000])
def test_the_interval_of_a_share_is_that_of_scipy(count: int) -> None:
    for right in {0, 1, count // 3, count - 1, count}:
        wanted = scipy.stats.binomtest(right, count).proportion_ci(method="exact")
        assert common.share_interval(right, count) == pytest.approx(tuple(wanted), abs=1e-8)


def check_html5(page: Path) -> None:
    """Fails if the page breaks a rule of HTML5's syntax."""
    text = page.read_text(encoding="utf-8")
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    assert len(list(tree.iter("section"))) >= 1
    for node in tree.iter():
        for name in ("src", "href", "{http://www.w3.org/1999/xlink}href"):
            assert node.get(name, "#").startswith(("#", "data:image/")), node.get(name)
    assert "@import" not in text and "<script" not in text


def rename_hostile(folder: Path) -> None:
    """Gives images, and a class if there are any, names that a careless page would run."""
    for split in ("train", "test"):
        image = min(path for path in (folder / split).rglob("*") if path.is_file())
        image.rename(image.with_name(f"<img src=x onerror=a>&amp;'{image.name}"))
        if (folder / split / "7").is_dir():
            (folder / split / "7").rename(folder / split / "<script>alert(7)<")


@pytest.mark.parametrize("task", TASKS)
def test_the_pages_of_both_tasks_are_valid(
    bake: Callable[..., Project], task: str, full: bool
) -> None:
    if not full:
        pytest.skip("`make stress` has it; tests/engine/task/test_report.py names like these")
    project = bake(task=task, accelerator="cpu")

    def run(*words: str) -> None:
        ended = project.run("python", *words)
        assert ended.returncode == 0, ended.stderr

    run("-c", "import dataset; dataset.data_dir(dataset.BUILT_IN)")  # writes the images
    data = project.path / "data" / ("digits" if task == TASKS[0] else "photos")
    rename_hostile(data)
    run("train.py", *TINY[task], "--run-dir=runs/<b>a")
    run("train.py", *TINY[task], "--run-dir=runs/b", "--seed=1")
    run("test.py", "--checkpoint=runs/b")
    run("test.py", "--checkpoint=runs/<b>a", "--against=runs/b")
    run("-m", "tools.compare", "runs/<b>a", "runs/b")
    report = project.path / "runs/<b>a/report"
    for page in (report / "index.html", project.path / "compare.html"):
        check_html5(page)
        assert "&lt;b&gt;a" in page.read_text(encoding="utf-8")
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images"] == (355 if task == TASKS[0] else 4)
    text = (report / "index.html").read_text(encoding="utf-8")
    found = "(Agresti and Min) over the same" if task == TASKS[0] else "too few images"  # four
    assert found in text and HOSTILE[task] in text
