"""The notebook of each task: it runs, shows what it says, and is kept bare."""

import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import nbformat
import pytest
from conftest import TASKS, TEMPLATE, Project, Tell
from edits import apply, printed_edits
from nbclient import NotebookClient

NOTEBOOK = "docs/explore.ipynb"
# The cells that end in a picture.
PICTURES = {
    "image-classification": ["options", "images", "batch", "overfit", "mistakes", "loss"],
    "image-to-image": ["images", "batch", "overfit", "errors", "loss"],
}
SAID = {
    "image-classification": r"1,301 images .* 141 (.*\n)+.*accuracy \d",
    "image-to-image": r"1,001 crops .* 12 (.*\n)+.*mean PSNR \d",
}


def execute(project: Project, more: str = "") -> Any:
    """Runs the notebook in its folder, as Jupyter does, and after it a cell of the test's own."""
    text = (project.path / NOTEBOOK).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(more)] if more else []
    where = {"metadata": {"path": str(project.path / "docs")}}
    NotebookClient(notebook, resources=where).execute()
    return notebook


def outputs(notebook: Any) -> list[tuple[str, Any]]:
    """The outputs of all cells, each with the id of its cell."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(cell.id, output) for cell in code for output in cell.outputs]


@pytest.mark.parametrize("task", TASKS)
def test_the_notebook_runs(bake: Callable[..., Project], task: str, tell: Tell, full: bool) -> None:
    """There is no run to look at, so it trains one; both losses learn."""
    if not full:
        pytest.skip("takes a minute; `make stress` has it")
    project = bake(task=task, accelerator="cpu")
    start, before = time.monotonic(), os.times()
    first = "assert all(abs(c[-1] - c[0]) > 2 for c in curves.values()) and len(curves) == 2"
    notebook = execute(project, first)
    used = os.times()
    cpu = sum(used[2:4]) - sum(before[2:4])  # of the kernel and train.py
    tell(f"{time.monotonic() - start:.0f} s, {cpu:.0f} s of them computing")
    found = outputs(notebook)
    pictures = {cell for cell, output in found if "image/png" in output.get("data", {})}
    assert pictures == set(PICTURES[task])
    printed = "".join(output.text for _, output in found if output.output_type == "stream")
    assert re.search(SAID[task], printed), printed
    (run,) = (project.path / "runs").iterdir()
    assert (run / "checkpoints/best.pt").is_file() and f"runs/{run.name}/check" in printed


@pytest.mark.parametrize("task", TASKS)
def test_the_notebook_runs_after_the_printed_edits(
    bake: Callable[..., Project], task: str, full: bool
) -> None:
    """With the owner's parts in the files, and a run of theirs to look at."""
    if not full:
        pytest.skip("takes a minute; `make stress` has it")
    project = bake(task=task, accelerator="cpu")
    for edit in printed_edits(project):
        apply(project, edit)
    mine = {TASKS[0]: ["--network=plain", "--loss=brier"], TASKS[1]: ["--losses=charbonnier"]}
    short = ["--epochs=1", *(["--crops=4"] if task == TASKS[1] else [])]
    trained = project.run("python", "train.py", "--run-dir=runs/mine", *mine[task], *short)
    assert trained.returncode == 0, trained.stderr
    printed = [output.get("text", "") for _, output in outputs(execute(project))]
    assert "runs/mine/checkpoints/best.pt" in "".join(printed)


@pytest.mark.parametrize("task", TASKS)
def test_the_notebook_is_kept_without_outputs(task: str) -> None:
    text = (TEMPLATE / "tasks" / task / NOTEBOOK).read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    for cell in notebook["cells"]:
        assert re.fullmatch("[a-z-]+", cell["id"]) and cell["metadata"] == {}
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert "move it to losses.py" in text.lower()
