"""The machinery of a project: its tests are in tests/engine/, and run on a project as it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TASKS, Project

COMMAND = [sys.executable, str(ROOT / "tests" / "machinery.py")]


def machinery(*words: str) -> "subprocess.CompletedProcess[str]":
    threads = os.environ.get("OMP_NUM_THREADS", "")  # "" for its tests as well as for ours
    env = {**os.environ, "OMP_NUM_THREADS": threads}
    return subprocess.run([*COMMAND, *words], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("task", TASKS)
def test_the_machinery_holds(bake: Callable[..., Project], task: str, full: bool) -> None:
    """engine/ is the same in both tasks: all of it is tested on the second one in full alone.

    In full, what `make test` has run of it is not repeated.
    """
    project = bake(task=task, accelerator="cpu")
    if task == TASKS[0]:
        runs = [["-m", "slow" if full else "not slow"]]
    else:
        runs = [["-m", "not slow"], ["-m", "slow", "tests/engine/task"]]
        runs = runs if full else [[*runs[0], "tests/engine/task"]]
    for words in runs:
        tested = machinery(str(project.path), "-q", "-rf", "--tb=short", *words)
        assert tested.returncode == 0, tested.stdout[-6000:] + tested.stderr[-2000:]


def test_a_fault_in_the_machinery_is_found(bake: Callable[..., Project]) -> None:
    """The one command of docs/build.md tests an owner's engine/, and leaves the project alone."""
    project = bake(accelerator="cpu")
    source = project.path / "engine/data/sampler.py"
    text = source.read_text(encoding="utf-8")
    assert "torch.randperm" in text
    source.write_text(text.replace("torch.randperm", "torch.arange"), encoding="utf-8")
    before = project.files()
    tested = machinery(str(project.path), "-q", "tests/engine/test_sampler.py")
    assert tested.returncode == 1 and "failed" in tested.stdout, tested.stdout[-2000:]
    assert [path for path in project.files() if "__pycache__" not in path.parts] == before


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    for words in ([], [str(tmp_path)]):
        refused = machinery(*words)
        assert refused.returncode == 2
        assert refused.stderr.startswith("machinery.py: error: ")
        assert refused.stderr.count("\n") == 1
