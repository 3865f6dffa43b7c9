"""Runs the tests of the machinery, which are in tests/engine/, on a project.

    .venv/bin/python tests/machinery.py PROJECT
    .venv/bin/python tests/machinery.py PROJECT -m "not slow" -k cache

They are for those who changed engine/. The project is copied into a temporary folder and tested
there, with its own tests/conftest.py; what pytest gets follows its name. The exit status is that of
pytest, or 2 if the folder is no project.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TASKS = ROOT / "{{cookiecutter.project_slug}}" / "tasks"
# What lies beside the code in a project, and may be large. The images that come with it are made
# again when they are used.
BESIDE = {"data", "runs", "predictions", "venv"}


def add_tests(project: Path) -> None:
    """Puts the tests of the machinery into a project; those of its task have a folder there."""
    folder = project / "tests" / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "tests" / "engine").glob("*.py"):
        shutil.copy(path, folder)
    for task in TASKS.iterdir():
        its = [path.relative_to(task) for path in task.glob("task/*.py")]
        if its and all((project / path).exists() for path in its):
            tests = ROOT / "tests" / "engine" / task.name
            shutil.copytree(tests, folder / "task", ignore=shutil.ignore_patterns("__pycache__"))


def not_tested(folder: str, names: list[str], project: Path) -> set[str]:
    """The names in a folder of a project that are not copied: data, runs, environments, caches."""
    top = BESIDE if Path(folder) == project else set()
    return {n for n in names if n in top or n.startswith(".") or n.endswith("cache__")}


def run(project: Path, words: Sequence[str]) -> int:
    """Runs the tests on a copy of a project; returns the exit status of pytest."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch).resolve() / "project"
        ignore = partial(not_tested, project=project)
        shutil.copytree(project, copy, ignore=ignore, symlinks=True)
        add_tests(copy)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        if not any(word.startswith("tests/") for word in words):
            command.append("tests/engine")
        env = {**os.environ, "PYTHONPATH": str(copy / "tests" / "engine")}  # what tests share
        return subprocess.run([*command, *words], cwd=copy, env=env).returncode


def main() -> int:
    project = Path(sys.argv[1] if len(sys.argv) > 1 else "")
    if len(sys.argv) < 2 or not (project / "tests/conftest.py").is_file():
        what = f"{project}: is no project" if len(sys.argv) > 1 else "name a project"
        line = f"machinery.py: error: {what}; give the folder with its train.py"
        print(line, file=sys.stderr)
        return 2
    return run(project, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
