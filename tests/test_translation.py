"""A project of image-to-image as its owner meets it: its first run, its own tests."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Project
from forked import finish, start
from PIL import Image

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SMALL = ["--img-size=16", "--width=4", "--blocks=0", "--batch-size=8", "--crops=4", "--epochs=1"]
SMALL += ["--d-width=4", "--d-layers=1", "--d-scales=1", "--workers=0", "--device=cpu"]


@pytest.fixture
def project(bake: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A new one, which is the current folder."""
    made = bake(task="image-to-image", accelerator="cpu")
    monkeypatch.chdir(made.path)
    yield made


def use(project: Project, program: str, *flags: str) -> str:
    """Runs a program, which must end well; returns what it printed."""
    here = str(project.path)
    status = finish(start(list(flags), lambda: sys.path.insert(0, here), program))
    text = Path("output.txt").read_text()
    assert status == 0, text[-3000:]
    return text


def test_the_first_run_and_what_follows(project: Project) -> None:
    use(project, "train", "--run-dir=runs/first", *SMALL)
    assert Path("runs/first/report/batch-000000001.png").exists()
    best = "--checkpoint=runs/first/checkpoints/best.pt"
    assert "gain" in use(project, "test", best)
    metrics = json.loads(Path("runs/first/report/metrics.json").read_text())
    assert metrics["images"] == len(metrics["by_image"]) == 4
    assert 20 < metrics["input_psnr"] < 21, "noise of 25 in 255"
    for name in ("best.png", "worst.png"):
        with Image.open(Path("runs/first/report") / name) as picture:
            assert picture.width > 600
    use(project, "predict", best, "data/photos/test")
    for path in Path("data/photos/test").iterdir():
        with Image.open(path) as given, Image.open(f"predictions/{path.stem}.png") as drawn:
            assert given.size == drawn.size


def test_programs_get_networks_and_losses_from_the_finished_model(project: Project) -> None:
    for program in ("test.py", "predict.py"):
        text = project.read(program)
        assert "from model import Model" in text
        assert "import networks" not in text and "import losses" not in text


def test_its_own_tests_pass(project: Project, full: bool) -> None:
    if not full:
        pytest.skip("test_edits.py runs the others")
    words = ["-q", "-p", "no:cacheprovider", "-m", "slow"]
    tested = project.run("python", "-m", "pytest", *words)
    assert tested.returncode == 0, tested.stdout[-4000:]
