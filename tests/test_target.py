"""The folder that a project is written into: files that were there, a repository around it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TASKS
from cookiecutter.main import cookiecutter

Generate = Callable[..., subprocess.CompletedProcess[str]]

KEEP = ("--overwrite-if-exists", "--skip-if-file-exists", "accelerator=cpu")
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


@pytest.fixture
def owner(generate: Generate, tmp_path: Path) -> Path:
    """A project, all of whose files its owner has changed, without its repository."""
    assert generate("accelerator=cpu").returncode == 0
    path = tmp_path / "out/my_vision_project"
    shutil.rmtree(path / ".git", ignore_errors=True)
    for file in files(path):
        file.write_bytes(file.read_bytes() + b"\n# mine\n")
    return path


def files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if ".git" not in path.relative_to(folder).parts)


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in files(folder)}


@pytest.mark.parametrize("task", TASKS)
def test_files_that_were_there_are_kept(owner: Path, generate: Generate, task: str) -> None:
    """All of them, also with another task; what is missing is written."""
    (owner / "model.py").unlink()
    (owner / "pyproject.toml").write_text("#! torch>=2.6\n")  # nothing that the hook may finish
    before = content(owner)
    result = generate(*KEEP, f"task={task}", "license=Apache-2.0")
    assert result.returncode == 0, result.stderr
    after = content(owner)
    assert {name: after.get(name) for name in before} == before
    assert b"mine" not in after[Path("model.py")] and not (owner / "tasks").exists()
    assert "PyTorch: as requirements.txt was" in result.stdout


def test_who_wants_files_overwritten_gets_a_new_project(owner: Path, generate: Generate) -> None:
    (owner / "mine.txt").write_text("mine")
    assert generate("--overwrite-if-exists", "accelerator=cpu").returncode == 0
    changed = [name for name, text in content(owner).items() if b"# mine" in text]
    assert not changed and (owner / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("words", [KEEP, KEEP[::2]], ids=["kept", "overwritten"])
def test_a_folder_tasks_of_the_owner_stays(
    generate: Generate, tmp_path: Path, words: tuple[str, ...]
) -> None:
    own = tmp_path / "out/my_vision_project/tasks"
    (own / "empty").mkdir(parents=True)
    (own / "image-classification").mkdir()
    for name in ("todo.txt", "image-classification/notes.txt"):
        (own / name).write_text("mine")
    assert generate(*words).returncode == 0
    assert sorted(path.relative_to(own).as_posix() for path in own.rglob("*")) == [
        "empty",
        "image-classification",
        "image-classification/notes.txt",
        "todo.txt",
    ]
    assert (own.parent / "model.py").is_file()


def test_a_file_where_a_folder_is_needed(generate: Generate, tmp_path: Path) -> None:
    path = tmp_path / "out/my_vision_project"
    path.mkdir(parents=True)
    (path / "tasks").write_text("mine")
    result = generate(*KEEP)
    assert result.returncode != 0 and "tasks: is a file" in result.stderr
    assert content(path) == {Path("tasks"): b"mine"}


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_kept_and_not_followed(generate: Generate, tmp_path: Path) -> None:
    path, shared = tmp_path / "out/my_vision_project", tmp_path / "shared"
    path.mkdir(parents=True)
    shared.mkdir()
    (shared / "losses.py").write_text("mine")
    (path / "losses.py").symlink_to(shared / "losses.py")
    (path / "networks.py").symlink_to(shared / "missing.py")
    assert generate(*KEEP).returncode == 0
    assert (path / "losses.py").is_symlink() and (path / "networks.py").is_symlink()
    assert content(shared) == {Path("losses.py"): b"mine"}


def test_files_are_kept_without_a_command_line(owner: Path, template: Path) -> None:
    before = content(owner)
    cookiecutter(
        str(template),
        no_input=True,
        output_dir=str(owner.parent),
        overwrite_if_exists=True,
        skip_if_file_exists=True,
        config_file=os.environ["COOKIECUTTER_CONFIG"],
    )
    assert content(owner) == before


def git(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *words]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.fixture
def around(tmp_path: Path) -> Path:
    """A repository with a commit, where projects are written to out/."""
    assert git(tmp_path, "init", "-q").returncode == 0
    (tmp_path / ".gitignore").write_text("/bin/\n/ignored/\n")
    git(tmp_path, "add", ".gitignore")
    assert git(tmp_path, "commit", "-qm", "x").returncode == 0
    return tmp_path


@needs_git
def test_a_repository_around_takes_the_project_in(around: Path, generate: Generate) -> None:
    state = content(around / ".git")
    result = generate("accelerator=cpu")
    assert result.returncode == 0 and result.stderr == ""
    assert "git: no new repository, the folder is in that of " in result.stdout
    assert (
        content(around / ".git") == state and not (around / "out/my_vision_project/.git").exists()
    )
    added = git(around, "add", ".")
    assert added.returncode == 0 and added.stderr == ""
    staged = git(around, "diff", "--cached", "--name-only").stdout.splitlines()
    assert "out/my_vision_project/tools/replay.py" in staged


@needs_git
def test_an_ignored_folder_gets_a_repository(around: Path, template: Path) -> None:
    """The one around never sees it."""
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", "ignored", str(template)]
    made = subprocess.run(command, cwd=around, capture_output=True, text=True)
    assert made.returncode == 0 and "git:" not in made.stdout
    assert (around / "ignored/my_vision_project/.git").is_dir()
    assert git(around, "add", ".").returncode == 0


@needs_git
def test_a_bare_repository_around_is_none(generate: Generate, tmp_path: Path) -> None:
    assert git(tmp_path, "init", "-q", "--bare", "out").returncode == 0
    assert generate("accelerator=cpu").returncode == 0
    assert (tmp_path / "out/my_vision_project/.git").is_dir()


@needs_git
def test_a_project_that_is_a_repository_keeps_it(generate: Generate, tmp_path: Path) -> None:
    assert generate("accelerator=cpu").returncode == 0
    path = tmp_path / "out/my_vision_project"
    (path / ".git/description").unlink()
    result = generate("--overwrite-if-exists", "accelerator=cpu")
    assert result.returncode == 0 and not (path / ".git/description").exists()


@needs_git
def test_the_environment_of_a_git_hook_names_another_repository(
    generate: Generate, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    state = content(other / ".git")
    index = {"GIT_INDEX_FILE": str(other / ".git/index")}
    assert generate("accelerator=cpu", GIT_DIR=str(other / ".git"), **index).returncode == 0
    assert content(other / ".git") == state
    assert (tmp_path / "out/my_vision_project/.git/HEAD").is_file()


@needs_git
def test_a_home_that_is_a_work_tree(generate: Generate, tmp_path: Path) -> None:
    """As people keep their dotfiles: the repository elsewhere, the work tree given by hand."""
    world = {"GIT_DIR": str(tmp_path / "dotfiles"), "GIT_WORK_TREE": str(tmp_path)}
    git(tmp_path, "init", "-q", **world)
    result = generate("accelerator=cpu", **world)
    assert f"git: no new repository, the folder is in that of {tmp_path}" in result.stdout
    added = git(tmp_path, "add", "out", **world)
    assert added.returncode == 0 and added.stderr == ""


@needs_git
def test_a_repository_that_git_refuses(around: Path, generate: Generate) -> None:
    """One of another user, as in containers; git says so to its tests by a variable."""
    result = generate("accelerator=cpu", GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    assert result.returncode == 0 and result.stderr == ""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("git: "))
    assert "git refuses the one around: fatal: detected dubious ownership" in line
    assert git(around, "add", ".").returncode == 0


@needs_git
def test_a_users_own_template_of_repositories(generate: Generate, tmp_path: Path) -> None:
    """Its files come along; one that is missing is git's to complain of."""
    (tmp_path / "own/hooks").mkdir(parents=True)
    (tmp_path / "own/hooks/pre-commit").write_text("#!/bin/sh\nexit 1\n")
    assert generate("accelerator=cpu", GIT_TEMPLATE_DIR=str(tmp_path / "own")).returncode == 0
    assert (tmp_path / "out/my_vision_project/.git/hooks/pre-commit").is_file()
    again = ["--overwrite-if-exists", "project_slug=second", "accelerator=cpu"]
    assert generate(*again, GIT_TEMPLATE_DIR=str(tmp_path / "missing")).returncode == 0
    assert (tmp_path / "out/second/.git").is_dir()
