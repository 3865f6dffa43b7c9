"""Generation in the circumstances that people generate in: replays, settings, odd folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ANSWERS, SMALL, Project
from cookiecutter.exceptions import OutputDirExistsException
from cookiecutter.main import cookiecutter
from forked import finish, start
from test_render import tomllib

Bake = Callable[..., Project]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, and a POSIX shell")


def content(project: Project) -> dict[Path, bytes]:
    return {path.relative_to(project.path): path.read_bytes() for path in project.files()}


class Cookiecutter:
    """The program with a configuration file, a replay folder and an output folder of its own."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder, self.template = folder, template
        self.config = folder / "cookiecutterrc"
        self.out = folder / "out"
        self.configure("{}")

    def configure(self, default_context: str) -> None:
        """Writes the configuration file, with a user's own defaults in YAML."""
        self.config.write_text(
            f"replay_dir: {json.dumps(str(self.folder / 'replay'))}\n"
            f"default_context: {default_context}\n",
            encoding="utf-8",
        )

    def __call__(
        self, *words: str, cwd: Path | None = None, template: str = "", out: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cookiecutter", template or str(self.template)]
        return subprocess.run(
            [*command, "--output-dir", out or str(self.out), *words],
            cwd=cwd or self.folder,
            env={**os.environ, "COOKIECUTTER_CONFIG": str(self.config), "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )

    def project(self, slug: str = "ada_net") -> Project:
        return Project(self.out / slug)


@pytest.fixture
def run(settings: Path, template: Path, tmp_path: Path) -> Cookiecutter:
    return Cookiecutter(tmp_path, template)


def use(project: Project, program: str, *flags: str) -> None:
    """Runs one of the project's programs in its folder."""
    here, output = str(project.path), str(project.path / "output.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.path)
        pid = start(list(flags), lambda: sys.path.insert(0, here), program, output)
        assert finish(pid) == 0, project.read("output.txt")


def given(answers: dict[str, str]) -> list[str]:
    return [f"{name}={answer}" for name, answer in answers.items()]


def assert_refused(run: Cookiecutter, result: subprocess.CompletedProcess[str], line: str) -> None:
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"Error: {line}") and result.stderr.count("\n") == 1
    assert not run.out.exists() or not list(run.out.iterdir())


@pytest.mark.parametrize("way", ["--replay", "--replay-file"])
def test_a_replay_is_the_same_project(run: Cookiecutter, way: str) -> None:
    assert run("--no-input", *given(ANSWERS)).returncode == 0
    first = content(run.project())
    shutil.rmtree(run.out)
    (file,) = (run.folder / "replay").iterdir()
    moved = shutil.move(file, run.folder / "mine.json") if way == "--replay-file" else ""
    again = run(way, *([str(moved)] if moved else []))
    assert again.returncode == 0, again.stderr
    assert content(run.project()) == first


@pytest.mark.parametrize(
    ("question", "answer", "refusal"),
    [
        ("project_slug", "../evil", "must be 1 to 100"),
        ("description", "two\nlines", "must be one line"),
        ("author_name", None, "must be text"),
        ("license", "GPL", "must be one of MIT, BSD-3-Clause, Apache-2.0, none"),
        ("task", "../..", "must be one of image-classification"),
    ],
)
def test_a_replay_file_is_checked_too(
    run: Cookiecutter, question: str, answer: object, refusal: str
) -> None:
    """cookiecutter asks and renders nothing then, so what it holds goes past the questions."""
    assert run("--no-input", *given(ANSWERS)).returncode == 0
    shutil.rmtree(run.out)
    (file,) = (run.folder / "replay").iterdir()
    state = json.loads(file.read_text())
    state["cookiecutter"][question] = answer
    file.write_text(json.dumps(state))
    result = run("--replay")
    assert_refused(run, result, f"{question} {str(answer)!a}: {refusal}")


def test_a_check_cannot_be_answered(run: Cookiecutter) -> None:
    result = run("--no-input", "__check_project_slug=", "project_slug=../evil")
    assert_refused(run, result, "project_slug '../evil': ")
    assert not (run.folder / "evil").exists()


def test_a_users_own_defaults(run: Cookiecutter) -> None:
    defaults = {**ANSWERS, "full_name": "another template's", "license": "none"}
    run.configure(json.dumps(defaults, ensure_ascii=False))
    result = run("--no-input")
    assert result.returncode == 0 and result.stderr == ""
    about = tomllib.loads(run.project().read("pyproject.toml"))["project"]
    assert about["description"] == ANSWERS["description"]
    assert about["authors"] == [{"name": ANSWERS["author_name"], "email": "zoe@example.org"}]
    assert "license" not in about and not (run.project().path / "LICENSE").exists()


@pytest.mark.parametrize(
    ("defaults", "line"),
    [
        ("{author_name: null}", "author_name 'None': must be text"),
        ("{description: true}", "description 'True': must be text"),
        ("{description: {a: b}}", "description 'None': must be text"),
        ('{description: "a\\nb"}', "description 'a\\nb': must be one line"),
        ("{project_slug: torch}", "project_slug 'torch': is taken"),
    ],
)
def test_bad_defaults_of_a_user(run: Cookiecutter, defaults: str, line: str) -> None:
    run.configure(defaults)
    assert_refused(run, run("--no-input"), line)


def test_a_number_among_the_defaults_is_text(run: Cookiecutter) -> None:
    run.configure("{description: 1.5}")
    assert run("--no-input").returncode == 0
    about = tomllib.loads(run.project("my_vision_project").read("pyproject.toml"))["project"]
    assert about["description"] == "1.5"


def test_an_unknown_choice_writes_nothing(run: Cookiecutter) -> None:
    """cookiecutter ends in a traceback here, before it reads anything of a template's Python."""
    result = run("--no-input", "license=GPL")
    assert result.returncode == 1 and not run.out.exists()
    assert result.stderr.splitlines()[-1].startswith("ValueError: GPL provided for choice variable")


def test_an_old_cookiecutter_is_told_what_is_needed(run: Cookiecutter) -> None:
    """Up to 2.2 it has no rich; this one is made to have none where the template looks for it."""
    program = (
        "import sys\nfrom cookiecutter.cli import main\nsys.modules['rich.prompt'] = None\nmain()\n"
    )
    command = [sys.executable, "-c", program, str(run.template), "--no-input", "-o", str(run.out)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0 and not run.out.exists() and "Traceback" not in result.stderr
    assert "needs cookiecutter 2.7 or newer: pip install -U cookiecutter" in result.stdout


@needs_fork
def test_without_hooks_the_docs_finish_the_project(run: Cookiecutter, bake: Bake) -> None:
    """The very lines of docs/build.md; what they leave is what the hook leaves."""
    assert run("--no-input", "--accept-hooks=no", *given(ANSWERS)).returncode == 0
    project = run.project()
    (section,) = re.findall(
        r"(?ms)^If there is a folder `tasks/`.*?^```sh\n(.*?)^```", project.read("docs/build.md")
    )
    done = project.run("sh", "-euc", section)
    assert done.returncode == 0, done.stderr
    assert (project.path / ".git").is_dir()
    assert content(project) == content(bake(**ANSWERS))
    use(project, "train", *SMALL)


@needs_fork
def test_from_another_folder_into_a_path_with_blanks_and_letters(run: Cookiecutter) -> None:
    """The template by a relative path, the output by another, and the project is used there."""
    cwd = run.folder / "elsewhere"
    cwd.mkdir()
    relative = os.path.relpath(run.template, cwd)
    out = "../a blank/Zoë's 研究 & 🚀"
    made = run("--no-input", *given(ANSWERS), cwd=cwd, template=relative, out=out)
    assert made.returncode == 0, made.stderr
    assert not list(cwd.iterdir())
    project = Project((cwd / out / "ada_net").resolve())
    use(project, "train", "--run-dir=runs/Größe 1", *SMALL)
    use(project, "tools.check_data", "data/digits")
    use(project, "test", "--checkpoint=runs/Größe 1/checkpoints/best.pt")
    use(project, "predict", "--checkpoint=runs/Größe 1/checkpoints/best.pt", "data/digits/test/7")


def test_an_existing_folder_is_left_as_it_is(run: Cookiecutter) -> None:
    (run.out / "ada_net").mkdir(parents=True)
    (run.out / "ada_net/mine.txt").write_text("mine")
    result = run("--no-input", *given(ANSWERS))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "Error: project_slug 'ada_net': exists already; try ada_net_2\n"
    assert [path.name for path in run.out.rglob("*")] == ["ada_net", "mine.txt"]
    assert run.project().read("mine.txt") == "mine"
    # Who asks for it gets the project into that folder, to what is there.
    result = run("--no-input", "--overwrite-if-exists", *given(ANSWERS))
    assert result.returncode == 0, result.stderr
    assert run.project().read("mine.txt") == "mine" and run.project().read("train.py")
    # A replay asks nothing; it is refused the same way.
    result = run("--replay")
    assert result.returncode == 2 and "'ada_net': exists already; try ada_net_2" in result.stderr


def test_an_existing_folder_is_cookiecutters_to_refuse_in_python(run: Cookiecutter) -> None:
    """There is no command line then, and none who could be asked again."""
    (run.out / "ada_net").mkdir(parents=True)
    with pytest.raises(OutputDirExistsException):
        cookiecutter(
            str(run.template),
            no_input=True,
            extra_context=ANSWERS,
            output_dir=str(run.out),
            config_file=str(run.config),
        )
    assert not list((run.out / "ada_net").iterdir())


@pytest.mark.parametrize("prefix", ["", "./"])
def test_the_template_by_its_name_alone(run: Cookiecutter, prefix: str) -> None:
    """cookiecutter renders the hook in the template's folder, where this path leads nowhere."""
    name = prefix + run.template.name
    result = run("--no-input", *given(ANSWERS), cwd=run.template.parent, template=name)
    assert result.returncode == 0, result.stderr
    assert not (run.project().path / "tasks").exists()


def test_an_update_renders_each_version_with_its_own_extension(run: Cookiecutter) -> None:
    """cruft renders the old and the new version of the template in one process."""
    template = shutil.copytree(run.template, run.folder / "template")

    def shell(folder: Path, *words: str) -> None:
        env = {**os.environ, "COOKIECUTTER_CONFIG": str(run.config), "PYTHONUTF8": "1"}
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr

    def commit(folder: Path) -> None:
        shell(folder, "git", "add", "-A")
        shell(folder, "git", "-c", "user.name=A", "-c", "user.email=a@b.org", "commit", "-qm", "x")

    shell(template, "git", "init", "-q")
    commit(template)
    cruft = [sys.executable, "-m", "cruft"]
    create = [*cruft, "create", str(template), "--no-input", "--extra-context"]
    shell(run.folder, *create, json.dumps(ANSWERS))
    project = Project(run.folder / "ada_net")
    commit(project.path)
    for name, old, new in [
        ("pt_template_answers.py", '{"slug": slug_of', '{"shout": str.upper, "slug": slug_of'),
        ("{{cookiecutter.project_slug}}/Makefile", "# Short", '# {{ "new" | shout }}\n# Short'),
    ]:
        text = (template / name).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (template / name).write_text(text.replace(old, new), encoding="utf-8", newline="\n")
    commit(template)
    shell(project.path, *cruft, "update", "--skip-apply-ask")
    assert "# NEW\n# Short" in project.read("Makefile")


@pytest.mark.skipif(
    os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere"
)
def test_a_folder_that_cannot_be_written(run: Cookiecutter) -> None:
    run.out.mkdir()
    run.out.chmod(0o500)
    try:
        result = run("--no-input", *given(ANSWERS))
        assert result.returncode != 0 and not list(run.out.iterdir())
    finally:
        run.out.chmod(0o700)


@pytest.mark.parametrize(
    ("config", "authors"),
    [
        ("", None),
        ("[user]\n\tname = Ada\n", [{"name": "Ada"}]),
        ("[user]\n\temail = ada@example.org\n", [{"email": "ada@example.org"}]),
        ("[user\n", None),
    ],
    ids=["neither", "name", "email", "damaged"],
)
def test_authors_from_git(
    run: Cookiecutter, settings: Path, config: str, authors: list[dict[str, str]] | None
) -> None:
    """An answer that git does not have stays empty, also when its configuration is damaged."""
    (settings / "gitconfig").write_text(config)
    try:
        result = run("--no-input", "accelerator=cpu")
    finally:
        (settings / "gitconfig").unlink()
    assert result.returncode == 0
    about = tomllib.loads(run.project("my_vision_project").read("pyproject.toml"))["project"]
    assert about.get("authors") == authors
