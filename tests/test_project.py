"""The rendered project as its new owner meets it: its next steps, its programs, its own tests."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import Project
from PIL import Image

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="the printed steps are those of a POSIX shell"
)

# A new environment that finds what this one has installed, so that nothing is downloaded.
PYTHON3 = f"""#!/bin/sh
{sys.executable} "$@" || exit
if [ "$1 $2" = "-m venv" ]; then
    for folder in "$3"/lib/python*/site-packages; do
        echo {sysconfig.get_path("purelib")} > "$folder/outer.pth"
    done
fi
"""


@pytest.fixture(scope="module")
def owner(
    tmp_path_factory: pytest.TempPathFactory, template: Path
) -> tuple[Project, list[str], dict[str, str]]:
    """A project made by the program cookiecutter, the steps that it printed, a world for them."""
    folder = tmp_path_factory.mktemp("owner")
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(folder)]
    made = subprocess.run(
        [*command, str(template), "accelerator=cpu"],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    steps = [line.strip() for line in made.stdout.splitlines() if line.startswith("    ")]
    python3 = folder / "bin" / "python3"
    python3.parent.mkdir()
    python3.write_text(PYTHON3)
    python3.chmod(0o755)
    # An index that cannot be reached costs pip its retries, one package after the other.
    world = {"PATH": f"{python3.parent}{os.pathsep}{os.environ['PATH']}", "PIP_RETRIES": "0"}
    # What was said to the make that runs these tests is not for the owner's make.
    said = re.compile("ARGS|MFLAGS|MAKE.*")
    rest = {name: value for name, value in os.environ.items() if not said.fullmatch(name)}
    return Project(folder / "my_vision_project"), steps, {**rest, **world}


def follow(steps: list[str], world: dict[str, str]) -> None:
    shell = subprocess.run(
        ["sh", "-eu"], input="\n".join(steps), env=world, capture_output=True, text=True
    )
    assert shell.returncode == 0, shell.stdout[-4000:] + shell.stderr[-4000:]


def test_next_steps_with_make(owner: tuple[Project, list[str], dict[str, str]]) -> None:
    """`make train`, then `make test`: all tests that the project brings along pass."""
    project, steps, world = owner
    assert [step.split(" ")[0] for step in steps[:3]] == ["cd", "make", "make"]
    follow(steps[:3], {**world, "VENV": ".venv-made"})
    assert (project.path / ".venv-made/.installed").exists()


def test_next_steps_without_make(owner: tuple[Project, list[str], dict[str, str]]) -> None:
    """The plain commands; the tests are only collected, `make test` has run them."""
    project, steps, world = owner
    follow([steps[0], *steps[3:]], {**world, "PYTEST_ADDOPTS": "--collect-only -q"})
    assert (project.path / ".venv/bin/python").exists()
    assert len(steps) == 7


def test_the_default_run_learns_the_images(
    owner: tuple[Project, list[str], dict[str, str]],
) -> None:
    """One seed on any machine; `make stress` holds the median of three to 99 %."""
    run = max((owner[0].path / "runs").iterdir())
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [p["values"]["accuracy"] for p in points if p["split"] == "test"][-1] >= 0.98


def test_a_run_is_judged_and_used(owner: tuple[Project, list[str], dict[str, str]]) -> None:
    project = owner[0]
    best = max((project.path / "runs").iterdir()) / "checkpoints/best.pt"
    judged = project.run("python", "test.py", "--checkpoint", str(best))
    assert judged.returncode == 0, judged.stderr
    report = best.parents[1] / "report"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["images"] == sum(map(sum, metrics["confusion"])) == 355
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(report / name) as picture:
            assert min(picture.size) > 50
    told = project.run("python", "predict.py", "--checkpoint", str(best), "data/digits/test/7")
    assert told.returncode == 0, told.stderr
    with open(project.path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["classes"]["7"]["images"]
    right = sum(row["class"] == "7" for row in rows)
    assert right == metrics["confusion"][7][7]


def test_train_py_stays_a_story(project: Project) -> None:

    source = project.read("train.py")
    assert len(source.splitlines()) <= 200
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 40, node.name


def test_programs_get_networks_and_losses_from_the_finished_model(project: Project) -> None:
    for program in ("train.py", "test.py", "predict.py"):
        text = project.read(program)
        model = "from model import Model" if program == "train.py" else "from classifier import"
        assert model in text
        assert "import networks" not in text and "import losses" not in text
    assert "from classifier import Classifier as Model" in project.read("model.py")
