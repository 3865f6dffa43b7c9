"""README and docs, of the template and of its projects: links, places, sizes, commands."""

import ast
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from commands import MARKDOWN, Follower, blocks, in_line
from conftest import ROOT, TASKS, Project
from edits import apply, printed_edits
from PIL import Image

OURS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("benchmarks/*.md"))]


@pytest.fixture
def project(bake: Callable[..., Project], task: str) -> Project:
    return bake(task=task, accelerator="cpu")


def documents(project: Project) -> list[Path]:
    """README first, then docs/; the edits last, since they change the project."""
    found = sorted(project.path.glob("docs/*.md"), key=lambda path: (path.stem == "edits", path))
    return [project.path / "README.md", *found]


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to the headings of a Markdown file."""
    tokens = MARKDOWN.parse(path.read_text(encoding="utf-8"))
    pairs = pairwise(tokens)
    titles = [title.content for head, title in pairs if head.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(path: Path) -> list[str]:
    """The targets of the links and pictures of a Markdown file."""
    tokens = MARKDOWN.parse(path.read_text(encoding="utf-8"))
    parts = [part for token in tokens for part in token.children or []]
    return [str(part.attrs.get("href") or part.attrs.get("src")) for part in parts if part.attrs]


def dead_links(path: Path) -> list[str]:
    """The links into the same repository that lead nowhere."""
    dead = []
    for link in links(path):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / unquote(name) if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(f"{path.name}: {link}")
    return dead


@pytest.mark.parametrize("task", TASKS)
def test_links_of_a_project_lead_somewhere(project: Project) -> None:
    pages = documents(project)
    assert len(pages) >= 10 and sum(len(links(path)) for path in pages) > 35
    assert not [link for path in pages for link in dead_links(path)]
    linked = {name.partition("#")[0] for name in links(pages[0])}
    assert {f"docs/{path.name}" for path in pages[1:]} <= linked, "each page is in the README"


def test_links_of_the_template_lead_somewhere(bake: Callable[..., Project]) -> None:
    assert not [link for path in OURS for link in dead_links(path)]
    linked = {name.partition("#")[0] for name in links(OURS[0])}
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")} <= linked
    # Links of a project to the template, whatever account will host it.
    for task in TASKS:
        for path in documents(bake(task=task, accelerator="cpu")):
            for link in links(path):
                name = link.partition("github.com/org/pt-template/blob/main/")[2]
                assert (ROOT / name).exists(), (path.name, link)


def test_the_tests_that_hold_a_situation_exist() -> None:
    text = (ROOT / "docs" / "situations.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+\.py)::(test_\w+)`", text)
    assert len(named) > 90 and text.count("::") == len(named)
    for name, test in named:
        own = name.removeprefix("project/")
        found = [ROOT / "tests" / name] if own == name else [*ROOT.glob(f"{{{{*/**/{own}")]
        texts = [path.read_text(encoding="utf-8") for path in found]
        assert any(f"def {test}(" in text for text in texts), (name, test)


@pytest.mark.parametrize("task", TASKS)
def test_readmes_are_short(project: Project) -> None:
    assert len(project.read("README.md").splitlines()) <= 200
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150 and readme.count("![") == 2


def make_images(path: Path, width: int = 40, count: int = 6) -> None:
    path.mkdir(parents=True)
    for i in range(count):
        Image.effect_noise((width, 40), 20 * i + 20).convert("RGB").save(path / f"{i}.png")


def make_data(root: Path, task: str) -> None:
    """The folders of the owner that the documents name."""
    for split in ("train", "test"):
        if task == "image-classification":
            # CIFAR10 would be downloaded.
            for data in ("my_images", "other_images", "data/CIFAR10"):
                for name in ("cat", "dog"):
                    make_images(root / data / split / name, count=12)
        else:
            make_images(root / "photos" / split)
            make_images(root / "joined" / split, width=80)
            make_images(root / "pairs" / split / "A")
            make_images(root / "pairs" / split / "B")
    for path in (root / "tools" / "photos").glob("*/*.jpg"):
        Image.open(path).reduce(3).save(path)  # SSIM of whole images takes seconds


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("task", TASKS)
def test_commands_of_a_project_run(
    project: Project, task: str, template: Path, tmp_path: Path, full: bool
) -> None:
    """All in the order of the pages, as a reader runs them, in one project.

    The code of docs/task.md makes another project: test_contracts.py.
    """
    if not full and task != TASKS[0]:
        pytest.skip("most of its pages are those of the other task; `make stress` has it")
    copy = Project(Path(shutil.copytree(project.path, tmp_path / "project")))
    make_data(copy.path, task)
    follower = Follower(copy.path, task, full, template)
    for path in documents(copy):
        if path.stem == "edits":
            for edit in printed_edits(copy):
                apply(copy, edit)
        for block in blocks(path, "sh"):
            follower.follow(block)
        for line in in_line(path):
            follower.look_at(line)
        for block in blocks(path, "python") if path.stem not in ("edits", "task") else ():
            follower.snippet(block)
    assert len(follower.done) > 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_commands_of_the_template_run(
    bake: Callable[..., Project], template: Path, tmp_path: Path, full: bool
) -> None:
    """Those of README begin with no project, those of other pages in one."""
    ready = bake(accelerator="cpu").path
    for path in OURS:
        follower = Follower(tmp_path if path in OURS[:1] else ready, TASKS[0], full, template)
        for block in blocks(path, "sh"):
            follower.follow(block)


def test_a_command_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    follower = Follower(tmp_path, TASKS[0], False, tmp_path)
    for command in ("no_such_program --help", "python -m no_such_module", "python no_such.py"):
        with pytest.raises(AssertionError):
            follower.follow(command)


@cache
def definitions(project: Project) -> dict[str, set[str]]:
    """The names that each file of Python defines: functions, classes, arguments, variables."""
    found = {}
    for path in project.path.rglob("*.py"):
        names = {path.stem}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.Constant) and re.match(r"--|\w+\.pt$", str(node.value)):
                names.add(str(node.value))
        found[path.relative_to(project.path).as_posix()] = names
    return found


def missing(place: str, project: Project) -> list[str]:
    """What a cell of docs/guide.md names, and the project does not have."""
    files = re.findall(r"[\w./]+\.(?:py|toml|json|ipynb|md)\b", place)
    lost = [name for name in files if not (project.path / name).is_file()]
    defined = definitions(project)
    texts = "".join(project.read(name) for name in files if name not in (*defined, *lost))
    anywhere = set[str]().union(*defined.values())
    for code, file in re.findall(r"`([^`]+)`(?: \((?:image-to-image: )?([\w/]+\.py)\))?", place):
        name = "".join(re.findall(r"^(?:--[\w-]+|[A-Za-z_][\w.-]*)", code))
        if code in files or not name or name.startswith(("torch", "nn.")):
            continue
        known = defined.get(file, set()) if file else anywhere
        *owners, last = [name] if name in known else name.split(".")
        if not (last in known and {*owners} <= anywhere) and name not in texts:
            lost.append(code)
    return lost


def test_the_guide_names_places_that_exist(bake: Callable[..., Project]) -> None:
    """In image classification, or in image-to-image if the row says so."""
    lines = (ROOT / "docs/guide.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
    assert len(rows) > 70
    first, second = (bake(task=task, accelerator="cpu") for task in TASKS)
    lost = []
    for rule, *places in rows:
        for place in places:
            absent = missing(place, first)
            if absent and "image-to-image" in place:
                absent = [name for name in absent if name in missing(place, second)]
            lost += [f"{rule.strip()}: {name}" for name in absent]
    assert not lost, "\n".join(lost)
