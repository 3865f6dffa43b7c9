"""How well the default run learns the images that come with the project."""

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project


def test_three_seeds_reach_99_percent(
    bake: Callable[..., Project], tmp_path: Path, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not full:
        pytest.skip("trains three times; `make stress` does it")
    project, reached = bake(accelerator="cpu"), []
    for seed in range(3):
        run = tmp_path / str(seed)
        trained = project.run("python", "train.py", f"--seed={seed}", f"--run-dir={run}")
        assert trained.returncode == 0, trained.stderr
        points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        tests = [point["values"]["accuracy"] for point in points if point["split"] == "test"]
        reached.append(tests[-1])
    with capsys.disabled():
        print(f"\ntest accuracy of three seeds on {os.cpu_count()} cores: {reached}")
    assert statistics.median(reached) >= 0.99
