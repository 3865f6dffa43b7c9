"""What every render must be: whole, well formed, and the same settings everywhere."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TASKS, TEMPLATE, Project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Bake = Callable[..., Project]
LICENSES = {
    "MIT": "MIT License",
    "BSD-3-Clause": "BSD 3-Clause License",
    "Apache-2.0": "Apache License",
}
PICTURES = {".png", ".jpg"}
# A cache or an environment inside the template's folder would become part of every project.
LEFTOVERS = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv", "runs"}


def requirements(text: str) -> set[str]:
    """Returns the requirements in a requirements file, without comments and options."""
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if line and not line.startswith(("#", "-"))}


def parse(path: Path) -> None:
    """Raises an exception if a file is not what its name says."""
    text = path.read_bytes().decode("utf-8") if path.suffix not in PICTURES else ""
    match path.suffix:
        case ".py":
            compile(text, path, "exec")
        case ".toml":
            tomllib.loads(text)
        case ".yml" | ".yaml" | ".cff":
            yaml.safe_load(text)
        case ".json" | ".ipynb":
            json.loads(text)


@pytest.fixture(scope="module", params=TASKS)
def project(bake: Bake, request: pytest.FixtureRequest) -> Project:
    """The project of each task; tests read it and leave it as it is."""
    return bake(task=request.param, accelerator="cpu")


def test_every_file_parses_and_none_is_empty(project: Project) -> None:
    assert project.files()
    for path in project.files():
        parse(path)
        assert path.stat().st_size or path.name == "__init__.py", path


def test_no_jinja_is_left(project: Project) -> None:
    for path in project.files():
        if path.suffix in PICTURES:
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".yml":
            text = text.replace("${{", "")  # GitHub's own braces
        assert "cookiecutter." not in text, path
        assert "{%" not in text, path
        if path.suffix != ".py":
            assert "{{" not in text, path


def test_text_files_end_in_one_newline(project: Project) -> None:
    for path in project.files():
        text = path.read_bytes()
        if path.suffix in PICTURES or not text:
            continue
        assert b"\r" not in text, path
        assert text.endswith(b"\n") and not text.endswith(b"\n\n"), path


def test_the_template_holds_no_leftovers() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert not [name for name in tracked if LEFTOVERS & set(Path(name).parts)]


def test_the_projects_python_has_no_jinja() -> None:
    for path in TEMPLATE.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"))
        assert "cookiecutter" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("license", [*LICENSES, "none"])
def test_license(bake: Bake, license: str) -> None:
    project = bake(license=license, author_name="Ada Lovelace", accelerator="cpu")
    about = tomllib.loads(project.read("pyproject.toml"))["project"]
    assert about.get("license") == (license if license in LICENSES else None)
    assert (project.path / "LICENSE").exists() == (license in LICENSES)
    assert not [
        path for path in project.files() if "LICENSE" in path.name.replace("LICENSE", "", 1)
    ]
    if license in LICENSES:
        text = project.read("LICENSE")
        assert text.strip().startswith(LICENSES[license])
        assert re.search(r"^ *Copyright (\(c\) )?20\d\d Ada Lovelace$", text, re.MULTILINE)


def test_license_without_an_author(bake: Bake) -> None:
    project = bake(project_name="Cats & Dogs", author_name="", author_email="", accelerator="cpu")
    assert "the authors of Cats & Dogs\n" in project.read("LICENSE")
    assert "authors" not in tomllib.loads(project.read("pyproject.toml"))["project"]


@pytest.mark.parametrize("task", TASKS)
def test_requirements_are_the_same_everywhere(bake: Bake, task: str) -> None:
    project = bake(task=task, accelerator="cpu")
    about = tomllib.loads(project.read("pyproject.toml"))
    lists = about["project"]["dependencies"], about["dependency-groups"]["dev"]
    parts = project.read("requirements.txt").split("# What its checks need on top.\n")
    assert [requirements(part) for part in parts] == [set(part) for part in lists]
    # Metrics of images are for the task that has them.
    assert ("scikit-image" in project.read("requirements.txt")) == (task == "image-to-image")
    # The template installs its project's list by reference, not by a copy.
    included = "-r {{cookiecutter.project_slug}}/requirements.txt\n"
    assert included in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_settings_of_the_template_are_those_of_the_project(project: Project) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    theirs = tomllib.loads(project.read("pyproject.toml"))["tool"]
    assert ours["ruff"]["line-length"] == theirs["ruff"]["line-length"]
    assert ours["ruff"]["target-version"] == theirs["ruff"]["target-version"]
    assert ours["ruff"]["lint"]["select"] == theirs["ruff"]["lint"]["select"]
    assert ours["mypy"]["overrides"][0] == theirs["mypy"]["overrides"][0]
    for tool in (ours["mypy"], theirs["mypy"]):
        del tool["overrides"]
    assert ours["mypy"] == theirs["mypy"]


def test_a_project_without_hooks_is_well_formed(bake: Bake) -> None:
    project = bake(accept_hooks=False)
    for path in project.files():
        parse(path)
    assert "--extra-index-url" not in re.sub("(?m)^#.*", "", project.read("requirements.txt"))
    assert "index" not in tomllib.loads(project.read("pyproject.toml"))["tool"]["uv"]


def test_workflow_keeps_githubs_braces(project: Project) -> None:
    assert "${{ matrix.python-version }}" in project.read(".github/workflows/tests.yml")


def test_generation_needs_no_network_and_no_stdin(
    generate: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A hook or an extension that opens a connection fails: every proxy leads nowhere."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*args, **kwargs):\n"
        "    raise RuntimeError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    result = generate(PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "network" not in result.stderr
    assert (tmp_path / "out/my_vision_project/pyproject.toml").is_file()
