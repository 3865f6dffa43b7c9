"""Style and types. mypy analyses PyTorch once for all that is in this file."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TASKS, Project
from edits import apply, printed_edits

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its recipe is that of a POSIX shell")


def test_the_template_and_its_projects() -> None:
    venv = Path(sys.executable).parents[1]
    words = ["make", "lint", f"VENV={venv}", "--assume-old=requirements.txt"]
    checked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("task", TASKS)
def test_a_project_after_the_printed_edits(bake: Callable[..., Project], task: str) -> None:
    project = bake(task=task, accelerator="cpu")
    for edit in printed_edits(project):
        apply(project, edit)
    cache = str(ROOT / ".mypy_cache")
    for command in (["ruff", "check", "."], ["mypy", "--cache-dir", cache, "."]):
        report = project.run("python", "-m", *command)
        assert report.returncode == 0, report.stdout
