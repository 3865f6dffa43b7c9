"""docs/explore.ipynb runs from top to bottom, in whichever folder an editor starts it."""

import shutil
from pathlib import Path

import pytest
from programs import ROOT

NOTEBOOK = "docs/explore.ipynb"
if not (ROOT / NOTEBOOK).is_file():
    pytest.skip(f"{NOTEBOOK} is no longer there", allow_module_level=True)
nbclient, nbformat = (pytest.importorskip(name) for name in ("nbclient", "nbformat"))
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of this project without data and runs, into which the notebook may write."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        made = ("__pycache__", *(("data", "runs") if Path(folder) == ROOT else ()))
        return [name for name in names if name in made or name.startswith(".")]

    return Path(shutil.copytree(ROOT, tmp_path / "project", ignore=left_out))


def execute(project: Path, start: Path, cells: int | None = None) -> None:
    """Runs the first `cells` of the notebook, or all, in a kernel that starts in the folder."""
    notebook = nbformat.read(project / NOTEBOOK, as_version=4)
    notebook.cells = notebook.cells[:cells]
    where = {"metadata": {"path": str(start)}}
    nbclient.NotebookClient(notebook, resources=where).execute()


def test_the_notebook_runs(project: Path) -> None:
    execute(project, start=(project / NOTEBOOK).parent)


def test_the_notebook_finds_the_project_from_its_root(project: Path) -> None:
    execute(project, start=project, cells=3)
