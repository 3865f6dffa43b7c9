"""A project takes over what changed in the template, by cruft, and keeps what its owner changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ANSWERS, SMALL, Project
from edits import Edit, apply, printed_edits
from pt_template_answers import markdown

# Where a project's docs say that the template is; git is told to find a clone of this machine.
URL = "https://github.com/org/pt-template"


class World:
    """The template as a repository, the user's git configuration, and the commands."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.template = shutil.copytree(template, folder / "template")
        config = folder / "gitconfig"
        config.write_text(
            "[user]\n\tname = Owner\n\temail = owner@example.org\n"
            "[init]\n\tdefaultBranch = main\n"
            f'[url "{self.template.as_uri()}"]\n\tinsteadOf = {URL}\n'
        )
        self.env = {**os.environ, "GIT_CONFIG_GLOBAL": str(config), "PYTHONUTF8": "1"}
        self.commit(self.template, "init")

    def run(self, cwd: Path, *words: str, status: int = 0) -> str:
        """Runs a command, which must end with a status; returns what it printed."""
        done = subprocess.run(words, cwd=cwd, env=self.env, capture_output=True, encoding="utf-8")
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def cruft(self, cwd: Path, *words: str, status: int = 0) -> str:
        return self.run(cwd, sys.executable, "-m", "cruft", *words, status=status)

    def commit(self, repository: Path, *before: str) -> str:
        """Commits everything there; returns the commit."""
        for words in (*([word] for word in before), ["add", "-A"], ["commit", "-qm", "x"]):
            self.run(repository, "git", *words)
        return self.run(repository, "git", "rev-parse", "HEAD").strip()

    def create(self, name: str = "ada_net") -> Project:
        """A project of cruft in a repository of its own, with one commit."""
        answers = json.dumps({**ANSWERS, "project_slug": name})
        self.cruft(self.folder, "create", URL, "--no-input", "--extra-context", answers)
        project = Project(self.folder / name)
        self.commit(project.path)
        return project

    def change_template(self) -> str:
        """What a later version may bring; returns its commit."""
        inner = self.template / "{{cookiecutter.project_slug}}"
        task = inner / "tasks/image-classification"
        for path, old, new in [
            (task / "networks.py", '"""A small', '"""CHANGED. A small'),
            (task / "losses.py", '"""', '"""CHANGED. '),
            (task / "dataset.py", '"""', '"""CHANGED. '),
            (inner / "train.py", '"""', '"""CHANGED. '),
            (inner / "Makefile", "# Short", "# CHANGED\n# Short"),
            (inner / "README.md", "## The template", "## The template\n\n{{ cookiecutter.motto }}"),
            (
                self.template / "cookiecutter.json",
                '  "license":',
                '  "motto": "CHANGED {{ cookiecutter.author_name }}",\n'
                '  "__check_motto": "{{ cookiecutter | check(\'motto\') }}",\n  "license":',
            ),
        ]:
            text = path.read_text(encoding="utf-8")
            assert old in text, path
            path.write_text(text.replace(old, new, 1), encoding="utf-8", newline="\n")
        (inner / "added.txt").write_text("CHANGED\n")
        (inner / ".editorconfig").unlink()
        return self.commit(self.template)


@pytest.fixture
def world(tmp_path: Path, template: Path) -> World:
    pytest.importorskip("cruft")
    return World(tmp_path, template)


def owner_edits(project: Project) -> list[Edit]:
    """Makes the edits that docs/edits.md prints; returns what an update must keep of them."""
    edits = printed_edits(project)
    for edit in edits:
        apply(project, edit)
    return [edit for edit in edits if edit.code in project.read(edit.file)]  # the last of a line


def assert_has_change(project: Project) -> None:
    for name in ("networks.py", "losses.py", "dataset.py", "train.py", "Makefile", "added.txt"):
        assert "CHANGED" in project.read(name), name
    assert f"CHANGED {ANSWERS['author_name']}" in project.read("README.md")
    assert not (project.path / ".editorconfig").exists()
    assert not list(project.path.rglob("*.rej"))
    assert ">>>>" not in "".join(project.read(name) for name in ("networks.py", "losses.py"))


def assert_has_answers(project: Project, slug: str = "ada_net") -> None:
    title, description = (markdown(ANSWERS[name]) for name in ("project_name", "description"))
    assert project.read("README.md").startswith(f"# {title}\n\n{description}\n")
    assert ANSWERS["author_name"] in project.read("LICENSE")
    kept = json.loads(project.read(".cruft.json"))["context"]["cookiecutter"]
    assert {**ANSWERS, "project_slug": slug}.items() <= kept.items()


def test_an_update_keeps_three_edits_and_brings_the_change(world: World) -> None:
    project = world.create()
    world.cruft(project.path, "check")
    edits = owner_edits(project)
    world.commit(project.path)
    commit = world.change_template()
    world.cruft(project.path, "check", status=1)
    world.cruft(project.path, "update", "--skip-apply-ask")
    for edit in edits:
        assert edit.code in project.read(edit.file), edit
    assert_has_change(project)
    assert_has_answers(project)
    assert json.loads(project.read(".cruft.json"))["commit"] == commit
    world.cruft(project.path, "check")
    trained = project.run("python", "train.py", "--network=plain", "--loss=brier", *SMALL)
    assert trained.returncode == 0, trained.stderr
    # The template's own state is left with the owner to be committed.
    assert "networks.py" in world.run(project.path, "git", "status", "--porcelain")


def test_nothing_to_update_changes_nothing(world: World) -> None:
    project = world.create()
    before = {path: path.read_bytes() for path in project.files()}
    world.cruft(project.path, "update", "--skip-apply-ask")
    assert before == {path: path.read_bytes() for path in project.files()}


def test_a_project_of_cookiecutter_is_linked_and_updated(world: World) -> None:
    """As docs/build.md of the project says, with the answers given to cruft once more."""
    answers = [f"{name}={answer}" for name, answer in ANSWERS.items()]
    world.run(
        *(world.folder, sys.executable, "-m", "cookiecutter", "--no-input"),
        *(str(world.template), *answers),
    )
    project = Project(world.folder / "ada_net")
    given = json.dumps(ANSWERS)
    world.cruft(project.path, "link", URL, "--no-input", "--extra-context", given)
    edits = owner_edits(project)
    world.commit(project.path)
    world.change_template()
    world.cruft(project.path, "update", "--skip-apply-ask")
    for edit in edits:
        assert edit.code in project.read(edit.file), edit
    assert_has_change(project)
    assert_has_answers(project)


def test_an_edit_of_the_same_line_is_left_to_the_owner(world: World) -> None:
    """A conflict is shown; the owner's line is not lost."""
    project = world.create()
    text = project.read("Makefile").replace("# Short names", "# MINE")
    (project.path / "Makefile").write_text(text)
    world.commit(project.path)
    world.change_template()
    world.cruft(project.path, "update", "--skip-apply-ask")
    everything = project.read("Makefile") + "".join(
        path.read_text() for path in project.path.glob("*.rej")
    )
    assert "# MINE" in everything and "# CHANGED" in everything


def test_a_project_names_no_path_of_the_machine(world: World) -> None:
    project = world.create()
    here = [str(world.folder), str(Path.home()), str(Path.cwd()), os.environ["HOME"]]
    for path in project.files():
        content = path.read_bytes().decode("utf-8", errors="ignore")
        assert not [folder for folder in here if folder in content], path
    state = json.loads(project.read(".cruft.json"))
    assert state["template"] == state["context"]["cookiecutter"]["_template"] == URL
    assert "_output_dir" not in state["context"]["cookiecutter"]


def test_cruft_refuses_a_bad_answer_in_one_line(world: World) -> None:
    command = [sys.executable, "-m", "cruft", "create", URL, "--no-input", "--extra-context"]
    result = subprocess.run(
        [*command, '{"description": "two\\nlines"}'],
        cwd=world.folder,
        env=world.env,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode != 0
    assert result.stderr.startswith("Error: description 'two\\nlines'")
    assert (result.stdout + result.stderr).count("\n") == 1
    assert sorted(path.name for path in world.folder.iterdir()) == ["gitconfig", "template"]
