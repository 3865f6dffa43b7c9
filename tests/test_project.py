"""The rendered project as its new owner meets it: its next steps, its programs, its own tests."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TASKS, TEMPLATE, Project
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


def test_the_board_needs_no_more_than_an_environment(
    bake: Callable[..., Project],
) -> None:
    """One made by the plain commands is enough; one that is missing is made and filled."""
    project = bake(accelerator="cpu")

    def would_do() -> str:
        return project.run("make", "-n", "board", "VENV=own", MAKEFLAGS="", ARGS="").stdout

    assert "-m venv own" in would_do() and "install.py -r requirements.txt" in would_do()
    (project.path / "own/bin").mkdir(parents=True)
    (project.path / "own/bin/python").touch()
    assert "requirements.txt" not in would_do() and "tensorboard.main" in would_do()


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
    return Project(folder / "my_vision_project"), steps, {**os.environ, **world}


def follow(steps: list[str], world: dict[str, str]) -> None:
    shell = subprocess.run(
        ["sh", "-eu"], input="\n".join(steps), env=world, capture_output=True, text=True
    )
    assert shell.returncode == 0, shell.stdout[-4000:] + shell.stderr[-4000:]


def test_next_steps_with_make(owner: tuple[Project, list[str], dict[str, str]], full: bool) -> None:
    """`make train` in few epochs of small images, then `make test`.

    In full it runs the project's slow tests. Otherwise its recipe is only asked for, as
    test_edits.py runs the tests that are not slow.
    """
    project, steps, world = owner
    world = {**world, "VENV": ".venv-made"}
    assert [step.split(" ")[0] for step in steps[:3]] == ["cd", "make", "make"]
    short = {**world, "ARGS": "--epochs=4 --img-size=16"}  # test_accuracy.py has all of them
    follow(steps[:2], short)
    follow(steps[0:3:2], {**world, "PYTEST_ADDOPTS": "-m slow", "MAKEFLAGS": "" if full else "n"})
    assert (project.path / ".venv-made/.installed").exists()


def test_next_steps_without_make(
    owner: tuple[Project, list[str], dict[str, str]], full: bool
) -> None:
    """The plain commands; the tests are only collected, those with make have run them."""
    if not full:
        pytest.skip("takes a minute; `make stress` has it")
    project, steps, world = owner
    short = [step.replace("train.py", "train.py --epochs=1") for step in steps]
    follow([short[0], *short[3:]], {**world, "PYTEST_ADDOPTS": "--collect-only -q"})
    assert (project.path / ".venv/bin/python").exists()
    assert len(steps) == 7


def test_the_first_run_is_tested_and_used(
    owner: tuple[Project, list[str], dict[str, str]],
) -> None:
    """One seed on any machine, after four epochs; `make stress` holds whole runs to 99 %."""
    project = owner[0]
    best = max((project.path / "runs").iterdir()) / "checkpoints/best.pt"
    tested = project.run("python", "test.py", "--checkpoint", str(best))
    assert tested.returncode == 0, tested.stderr
    report = best.parents[1] / "report"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["images"] == sum(map(sum, metrics["confusion"])) == 355
    assert metrics["accuracy"] >= 0.97
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


def functions(source: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]


def lines(node: ast.stmt) -> int:
    assert node.end_lineno
    return node.end_lineno - node.lineno + 1


def nesting(node: ast.AST) -> int:
    """How deep blocks lie in each other."""
    below = max((nesting(child) for child in ast.iter_child_nodes(node)), default=0)
    return below + isinstance(node, ast.With | ast.For | ast.While | ast.If | ast.Try)


def test_train_py_stays_a_story(project: Project) -> None:
    source = project.read("train.py")
    assert len(source.splitlines()) <= 160
    (main,) = functions(source)
    assert main.name == "main" and nesting(main) <= 4
    (loop,) = (node for node in ast.walk(main) if isinstance(node, ast.While))
    assert lines(loop) <= 60
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    assert not re.search(r"\bself\b", source)
    headings = re.findall(r"(?m)^    # (\d)\. ", source)
    assert headings == [str(i + 1) for i in range(len(headings))] and len(headings) >= 5


@pytest.mark.parametrize("task", TASKS)
def test_functions_are_short(bake: Callable[..., Project], task: str) -> None:
    """Those of the programs and the machinery; what is a list or a straight line may be longer."""
    limits = {"make_parser": 60, "main": 50}
    project = bake(task=task, accelerator="cpu")
    for path in project.files():
        name = path.relative_to(project.path).as_posix()
        if path.suffix == ".py" and not name.startswith("tests/") and name != "train.py":
            for node in functions(project.read(name)):
                assert lines(node) <= limits.get(node.name, 40), (name, node.name)


def test_programs_get_networks_and_losses_from_the_finished_model(project: Project) -> None:
    for program in ("train.py", "test.py", "predict.py"):
        text = project.read(program)
        assert "from model import Model" in text
        assert "import networks" not in text and "import losses" not in text
    assert project.read("model.py").endswith("\n\nModel = Classifier\n")


@pytest.mark.parametrize("task", TASKS)
def test_the_root_holds_what_the_owner_changes(bake: Callable[..., Project], task: str) -> None:
    project = bake(task=task, accelerator="cpu", license="MIT")
    visible = [path.name for path in project.path.iterdir() if not path.name.startswith(".")]
    assert len(visible) <= 21, sorted(visible)
    here = {path.stem for path in project.path.glob("*.py")} | {"task"}
    counts = [len(path.read_text().splitlines()) for path in project.path.glob("*.py")]
    assert task != "image-classification" or sum(counts) <= 1350
    assert len(list(project.path.glob("engine/*.py"))) <= 17  # each the answer to one question
    for path in project.path.glob("engine/**/*.py"):  # the machinery knows nothing of it
        assert not here & imported(path), path
    assert "engine" not in imported(project.path / "layers.py"), "a block can be copied"


def imported(path: Path) -> set[str]:
    """The modules that a file imports, without what is after the first dot."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_a_project_has_no_file_of_the_other_task(bake: Callable[..., Project]) -> None:
    folders = {task: TEMPLATE / "tasks" / task for task in TASKS}
    own = {
        task: {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        for task, folder in folders.items()
    }
    for task, other in zip(TASKS, reversed(TASKS), strict=True):
        project = bake(task=task, accelerator="cpu")
        found = {path.relative_to(project.path).as_posix() for path in project.files()}
        assert not found & (own[other] - own[task]) and "tasks" not in os.listdir(project.path)
        for name in own[task] & own[other]:  # the same name, and the content of its own
            assert (project.path / name).read_bytes() == (folders[task] / name).read_bytes(), name
    assert own[TASKS[0]] - own[TASKS[1]] and own[TASKS[1]] - own[TASKS[0]]
