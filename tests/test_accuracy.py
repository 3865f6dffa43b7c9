"""How well the default run learns the images that come with the project."""

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project, Tell


def test_three_seeds_reach_99_percent(
    bake: Callable[..., Project], tmp_path: Path, full: bool, tell: Tell
) -> None:
    if not full:
        pytest.skip("trains three times; `make stress` does it")
    project, reached = bake(accelerator="cpu"), []
    for seed in range(3):
        run = tmp_path / str(seed)
        trained = project.run("python", "train.py", f"--seed={seed}", f"--run-dir={run}")
        assert trained.returncode == 0, trained.stderr
        tested = project.run("python", "test.py", f"--checkpoint={run}")
        assert tested.returncode == 0, tested.stderr
        reached.append(json.loads((run / "report/metrics.json").read_text())["accuracy"])
    tell(f"test accuracy of three seeds on {os.cpu_count()} cores: {reached}")
    assert statistics.median(reached) >= 0.99
