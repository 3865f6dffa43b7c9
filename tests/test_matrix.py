"""The cells of the option matrix: rendered, checked, trained, resumed, tested.

They have every pair of answers to two questions: task, licence, author and build of PyTorch. What
the answers say is cycled through. No answer changes the Python of a project or the settings of its
tools (that is checked), so types and tests cannot tell one cell of a task from another: `make lint`
checks the types of each task; test_edits.py, test_project.py and test_translation.py run its tests.
For the same reason one cell of each task is trained unless in full.
"""

import itertools
import json
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import test_render
from conftest import ROOT, Project, Tell
from forked import finish, start
from test_answers import ORDINARY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

OPTIONS = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
CHOICES = {name: v for name, v in OPTIONS.items() if isinstance(v, list) and name[0] != "_"}
AUTHORS = {
    "nobody": ("", ""),
    "name": ("Ada Lovelace", ""),
    "email": ("", "ada@example.org"),
    "both": ('Zoë "Z" Ørsted', "zoe@example.org"),
}
# Of each task: a training run that takes a moment, the steps of its first epoch, a metric, the test
# images that come with the project, some of them, and what is predicted of them.
SMALL = {
    "image-classification": ["--img-size=8", "--width=8", "--blocks=1", "--batch-size=256"],
    "image-to-image": ["--img-size=16", "--width=4", "--blocks=0", "--batch-size=8", "--crops=4"],
}
SMALL["image-to-image"] += ["--d-width=4", "--d-layers=1", "--d-scales=1", "--pool=4"]
STEPS = {"image-classification": 1301 // 256, "image-to-image": 11 * 4 // 8}  # without validation
METRIC = {"image-classification": "accuracy", "image-to-image": "SSIM"}
IMAGES = {"image-classification": 355, "image-to-image": 4}
ANSWERED = ["README.md", "LICENSE", "pyproject.toml", "requirements.txt", "docs/CITATION.cff"]
ANSWERED += ["docs/build.md"]
SOME = {"image-classification": "data/digits/test/7", "image-to-image": "data/photos/test/cat.jpg"}
PREDICTED = {"image-classification": "predictions.csv", "image-to-image": "predictions/cat.png"}
Cell = dict[str, str]


def cells() -> list[Cell]:
    """Every pair of answers in one of them, with the texts cycled through."""
    builds, texts = itertools.cycle(CHOICES["accelerator"]), itertools.cycle(ORDINARY)
    tasks = CHOICES["task"]
    return [
        {
            "task": tasks[(i + j) % len(tasks)],
            "license": license,
            "author_name": AUTHORS[author][0],
            "author_email": AUTHORS[author][1],
            "accelerator": next(builds),
            "project_name": next(texts),
            "description": next(texts) if author != "nobody" else "",
        }
        for i, license in enumerate(CHOICES["license"])
        for j, author in enumerate(AUTHORS)
    ]


CELLS = cells()
NAMES = [
    f"{cell['task']}-{cell['license']}-{author}-{cell['accelerator']}"
    for cell, author in zip(CELLS, itertools.cycle(AUTHORS))
]
FEW = NAMES[: len(CHOICES["task"])]  # one of each task
# One of each task and accelerator, which alone have a part in training.
KINDS = {(c["task"], c["accelerator"]): n for n, c in zip(NAMES, CELLS, strict=True)}
TRAINED = sorted({*FEW, *KINDS.values()})
passed: list[str] = []


@pytest.fixture(scope="module")
def render(bake: Callable[..., Project]) -> Callable[[str], Project]:
    """Returns a function that renders a cell by its name, once."""
    return cache(lambda name: bake(**CELLS[NAMES.index(name)]))


def task_of(name: str) -> str:
    return CELLS[NAMES.index(name)]["task"]


def kept(name: str, cell: Cell) -> str:
    """Returns what a file of the template is called in a cell, "" if it is left out."""
    if rule := re.search(r"\{% if cookiecutter\.(\w+) == '(.+)' %\}(.+)\{% endif %\}", name):
        name = name.replace(rule[0], rule[3] if cell[rule[1]] == rule[2] else "{}")
    if name == "tasks/.overwrite":  # with which the hooks tell each other
        name = "{}"
    for task in CHOICES["task"]:
        if name.startswith(f"tasks/{task}/"):
            name = name.removeprefix(f"tasks/{task}/") if cell["task"] == task else "{}"
    return "" if "{}" in name else name


def test_each_cell_has_its_files_and_no_others(
    render: Callable[[str], Project], template: Path
) -> None:
    """A file of the template that no cell keeps, or that comes twice, is found here as well."""
    inner = template / "{{cookiecutter.project_slug}}"
    names = [path.relative_to(inner).as_posix() for path in inner.rglob("*") if path.is_file()]
    unused = set(names) - {"tasks/.overwrite"}
    for cell, label in zip(CELLS, NAMES, strict=True):
        expected = [kept(name, cell) for name in names if kept(name, cell)]
        unused -= {name for name in names if kept(name, cell)}
        project = render(label)
        found = [path.relative_to(project.path).as_posix() for path in project.files()]
        assert sorted(found) == sorted(expected), label
    assert not unused


def test_all_pairs_of_choices_are_in_the_matrix() -> None:
    for question, choices in CHOICES.items():
        assert {cell[question] for cell in CELLS} == set(choices)
    assert len({tuple(cell.items()) for cell in CELLS}) == len(CELLS)
    assert sorted(map(task_of, FEW)) == sorted(CHOICES["task"])
    answers = {**CHOICES, "author": list(AUTHORS.values())}
    given = [{**c, "author": (c["author_name"], c["author_email"])} for c in CELLS]
    for one, other in itertools.combinations(answers, 2):
        pairs = set(itertools.product(answers[one], answers[other]))
        assert {(cell[one], cell[other]) for cell in given} == pairs, (one, other)
    questions = {name for name in OPTIONS if name[0] != "_"}
    assert questions == {*CELLS[0], "project_slug"}, "a new question: cycle it, or make it a cell"


@pytest.mark.parametrize("name", NAMES)
def test_cell_is_well_formed(render: Callable[[str], Project], name: str) -> None:
    cell = render(name)
    ruff = cell.run("python", "-m", "ruff", "check", "--no-cache", ".")
    assert ruff.returncode == 0, ruff.stdout[-3000:]
    first = render(next(other for other in NAMES if other.startswith(task_of(name))))
    test_render.test_every_file_parses_and_none_is_empty(cell)
    test_render.test_text_files_end_in_one_newline(cell)
    shown = {CELLS[NAMES.index(name)][question] for question in ("project_name", "description")}
    for path in cell.files():
        content, relative = path.read_bytes(), path.relative_to(cell.path)
        if relative.as_posix() not in ANSWERED:
            assert content == (first.path / relative).read_bytes(), "as in each of this task"
            continue
        text = content.decode("utf-8")
        if path.name == "pyproject.toml":
            tools = [tomllib.loads(project.read(path.name))["tool"] for project in (cell, first)]
            for tool in tools:
                tool.pop("uv")  # where PyTorch comes from
            assert tools[0] == tools[1], "as in each of this task"
        assert "\n\n\n" not in text or path.name == "LICENSE", path
        for answer in sorted(shown, key=len, reverse=True):
            text = text.replace(json.dumps(answer, ensure_ascii=False)[1:-1], "")
            text = text.replace(answer, "") if answer else text
        assert not re.search(r"\{\{|\}\}|\{%|%\}|\{#|cookiecutter\.", text), path
    folders = [path for path in cell.path.rglob("*") if path.is_dir()]
    assert not [path for path in folders if not any(path.iterdir()) and ".git" not in path.parts]


@pytest.mark.parametrize("name", TRAINED)
def test_cell_is_trained_resumed_and_tested(
    render: Callable[[str], Project],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    full: bool,
    tmp_path: Path,
) -> None:
    if name not in FEW and not full:
        pytest.skip("`make stress` trains it")
    cell = render(name)
    monkeypatch.chdir(cell.path)
    output = tmp_path / "output.txt"

    def run(program: str, *flags: str) -> str:
        here = str(cell.path)
        pid = start(list(flags), lambda: sys.path.insert(0, here), program, str(output))
        assert finish(pid) == 0, output.read_text()
        return output.read_text()

    task = task_of(name)
    run("train", "--run-dir=runs/a", *SMALL[task], "--workers=0", "--epochs=1", "--save-every=2")
    points = Path("runs/a/metrics.jsonl").read_text().splitlines()
    half = json.loads(points[-1])["n_iter"]
    assert half == STEPS[task], "all images in whole batches"
    run("train", "--run-dir=runs/a", "--resume", "--epochs=2")
    points = Path("runs/a/metrics.jsonl").read_text().splitlines()
    assert json.loads(points[-1])["n_iter"] == 2 * half
    assert METRIC[task] in run("test", "--checkpoint=runs/a", "--worst=1")
    assert json.loads(Path("runs/a/report/metrics.json").read_text())["images"] == IMAGES[task]
    run("predict", "--checkpoint=runs/a/checkpoints/best.pt", SOME[task])
    assert Path(PREDICTED[task]).stat().st_size > 300
    passed.append(name)


def test_the_number_of_cells(full: bool, tell: Tell) -> None:
    """Runs last; fails if a cell that was to be trained was not."""
    tell(f"{len(passed)} of {len(CELLS)} cells trained, resumed and tested")
    assert passed in ([], TRAINED if full else sorted(FEW))
