"""What chooses is not what judges: no image of test/ has any effect on training."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TASKS, Project
from forked import finish, start
from PIL import Image, ImageOps
from test_faults import bits
from test_matrix import SMALL

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize("task", TASKS)
def test_no_image_of_test_changes_a_bit_of_a_run(
    bake: Callable[..., Project], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the images that come with the project: each of test/ becomes its negative."""
    project = bake(task=task, accelerator="cpu")
    monkeypatch.chdir(project.path)

    def train(name: str, data: str) -> tuple[str, list[dict]]:
        """Trains; returns the bits of the weights and the metrics of all validations."""
        words = [f"--run-dir=runs/{name}", f"--data={data}", *SMALL[task], "--epochs=2"]
        here = str(project.path)
        child = start([*words, "--workers=0"], lambda: sys.path.insert(0, here))
        assert finish(child) == 0, Path("output.txt").read_text()
        points = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
        values = [p["values"] for p in map(json.loads, points) if p["split"] == "val"]
        assert len(values) == 2
        return bits(Path(f"runs/{name}/checkpoints/best.pt")), values

    (folder,) = {"image-classification": ["data/digits"], "image-to-image": ["data/photos"]}[task]
    wanted = train("before", folder)
    shutil.copytree(folder, "changed", ignore=shutil.ignore_patterns(".cache"))
    images = [path for path in Path("changed/test").rglob("*") if path.suffix in (".png", ".jpg")]
    assert len(images) >= 4
    for path in images:
        with Image.open(path) as image:
            ImageOps.invert(image.convert("RGB")).save(path)
    assert train("after", "changed") == wanted
    shutil.rmtree("changed/test")
    assert train("without", "changed") == wanted
    # The same change to a single image of train/ is seen.
    path = max(Path("changed/train").rglob("*.*g"))
    with Image.open(path) as image:
        ImageOps.invert(image.convert("RGB")).save(path)
    assert train("seen", "changed") != wanted
