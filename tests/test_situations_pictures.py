"""What people have met with image-to-image networks, from a training to its outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Project
from PIL import Image
from test_translation import SMALL, project, pytestmark, use

__all__ = ["project", "pytestmark"]
L1 = [*SMALL, "--losses=l1"]


def draw(path: str, height: int, width: int, phase: float = 0) -> None:
    """Waves that get brighter to the right."""
    y, x = np.mgrid[:height, :width]
    slope = 40 + 170 * x / width
    waves = [slope + 20 * np.sin(x / 9 + c + phase) * np.cos(y / 8) for c in range(3)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(path)


def test_instance_norm_on_an_image_larger_than_a_tile(project: Project, full: bool) -> None:
    if not full:
        pytest.skip("tests/engine/image-to-image/test_tiles.py has it with many networks")
    for i in range(6):
        for side in "AB":
            draw(f"pairs/train/{side}/{i}.png", 64, 64, phase=i + (side == "B"))
    for side in "AB":
        draw(f"pairs/test/{side}/large.png", 100, 1500)
    words = ["--norm=instance", "--n-downsampling=2", "--data=pairs", "--run-dir=run"]
    use(project, "train", *L1, *words)
    found = {}
    for name, more in {"usual": [], "whole": ["--tile=1504"], "tiles": ["--tile=768"]}.items():
        tested = use(project, "test", "--checkpoint=run", *more)
        assert ("warning: large.png: tiles differ by" in tested) == (name == "tiles")
        psnr = json.loads(Path("run/report/metrics.json").read_text())["psnr"]
        out = ["--checkpoint=run", "pairs/test/A", f"--out={name}", *more]
        assert ("tiles differ by" in use(project, "predict", *out)) == (name == "tiles")
        found[name] = psnr, Path(name, "large.png").read_bytes()
    assert found["usual"] == found["whole"] != found["tiles"]


def test_small_test_images_and_one_name_in_two_folders(project: Project, full: bool) -> None:
    if not full:
        pytest.skip("tests/engine/image-to-image/ has test_bad_input.py and test_outputs.py")
    for i in range(4):
        draw(f"photos/train/{i}.png", 40, 60, phase=i)
    for path in ("photos/test/y.png", "photos/test/y.jpg", "more/y.png"):
        draw(path, 12, 14)
    use(project, "train", *L1, "--data=photos", "--run-dir=run")
    assert "gain" in use(project, "test", "--checkpoint=run")
    use(project, "predict", "--checkpoint=run", "photos/test", "more", "--out=out")
    files = sorted(path.as_posix() for path in Path("out").rglob("*.png"))
    folder = "out/photos/test"
    assert files == ["out/more/y.png", f"{folder}/y.jpg.png", f"{folder}/y.png.png"]
