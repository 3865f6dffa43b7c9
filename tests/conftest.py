"""Rendering for the tests: `bake` makes a project, in a world without the developer's settings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cookiecutter.main import cookiecutter

# What was said to the make that runs the tests is not for the make of a project.
for name in ("ARGS", "PYTHON", "VENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(name, None)
# For the tests and the processes that they start, unless it is set; "" leaves it to PyTorch.
if not os.environ.setdefault("OMP_NUM_THREADS", "1"):
    del os.environ["OMP_NUM_THREADS"]

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
collect_ignore = ["engine"]  # tests of a project, see machinery.py
TASKS = ["image-classification", "image-to-image"]
# What a developer's working copy has on top; cookiecutter would put it into each project.
NOT_TEMPLATE = shutil.ignore_patterns(".git", ".venv*", "demo", "*_cache", "__pycache__", "runs")
# Answers that a careless template changes, and a training run that takes a moment.
ANSWERS = {
    "project_name": 'Ada\'s "Best" Net {{ 7 * 7 }}',
    "project_slug": "ada_net",
    "description": "C:\\new\\table: 研究 🚀 #1 {% raw %}",
    "author_name": "Zoë {# ø #}",
    "author_email": "zoe@example.org",
    "license": "BSD-3-Clause",
    "accelerator": "cpu",
}
# Seconds until a test gives up waiting for what should take one. It is against hanging alone: no
# test says how fast a machine is.
PATIENCE = 180.0
TIMES = int(os.environ.get("TIMES", 1))  # so many times the faults and answers of `make stress`
SEED = int(os.environ.get("SEED", 0))  # of what is drawn for them
SMALL = ["--img-size=8", "--batch-size=64", "--epochs=1", "--workers=0", "--device=cpu"]


@dataclass(frozen=True)
class Project:
    """A rendered project."""

    path: Path

    def read(self, name: str) -> str:
        """Returns the text of one of its files."""
        return (self.path / name).read_text(encoding="utf-8")

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in its folder; "python" is the interpreter of the tests.

        A program of the project is forked where that can be, which saves seconds of imports.
        """
        program = command[1] if command[0] == "python" and hasattr(os, "fork") else ""
        if program.endswith(".py") and not env:
            import forked

            return forked.run(self.path, *command[1:])
        words = [sys.executable if word == "python" else word for word in command]
        return subprocess.run(
            words, cwd=self.path, env={**os.environ, **env}, capture_output=True, text=True
        )

    def files(self) -> list[Path]:
        """Returns its files, those of git excepted."""
        found = (path for path in self.path.rglob("*") if path.is_file())
        return sorted(path for path in found if ".git" not in path.relative_to(self.path).parts)


Tell = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="inject as many faults as `make stress`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files come first; with --full, without the tests that have no long form."""
    first = ["test_engine.py", "test_lint.py"]
    items.sort(key=lambda item: (*first, item.path.name).index(item.path.name))
    if config.getoption("full"):
        short = [item for item in items if "full" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=short)
        items[:] = [item for item in items if item not in short]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what tests have told, also from the processes of `-n 2`."""
    calls = (report for reports in terminalreporter.stats.values() for report in reports)
    for report in calls:
        if getattr(report, "when", "") == "call":
            for name, text in report.user_properties:
                terminalreporter.write_line(f"{name}: {text}")


@pytest.fixture
def tell(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Tell:
    """Returns a function that prints a line at the end of the session."""
    return lambda text: record_property(request.node.name, text)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a test is wanted."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of its own: no user's cookiecutterrc, replay files or git configuration."""
    home = tmp_path_factory.mktemp("home")
    config = home / "cookiecutterrc"
    config.write_text(f"replay_dir: '{home / 'replay'}'\ncookiecutters_dir: '{home / 'cache'}'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USERPROFILE", str(home))
        patch.setenv("XDG_CONFIG_HOME", str(home))
        patch.setenv("GIT_CONFIG_GLOBAL", str(home / "gitconfig"))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("COOKIECUTTER_CONFIG", str(config))
        patch.setenv("PYTHONIOENCODING", "utf-8")
        patch.chdir(home)
        yield home


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a clone has it."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("clone") / "pt", ignore=NOT_TEMPLATE)


@pytest.fixture(scope="session")
def bake(
    tmp_path_factory: pytest.TempPathFactory, settings: Path, template: Path
) -> Callable[..., Project]:
    """Returns a function that renders the template with some answers, the rest by default."""

    def bake(accept_hooks: bool = True, **answers: str) -> Project:
        path = cookiecutter(
            str(template),
            no_input=True,
            extra_context=answers,
            output_dir=str(tmp_path_factory.mktemp("bake")),
            config_file=os.environ["COOKIECUTTER_CONFIG"],
            accept_hooks=accept_hooks,
        )
        return Project(Path(path))

    return bake


@pytest.fixture(scope="session")
def project(bake: Callable[..., Project]) -> Project:
    """The project of the defaults; tests read it and leave it as it is."""
    return bake(accelerator="cpu")


@pytest.fixture
def generate(
    settings: Path, template: Path, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Returns a function that runs the program cookiecutter, into `out` of the test's folder."""

    def generate(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cookiecutter", "--no-input", "--output-dir"]
        return subprocess.run(
            [*command, str(tmp_path / "out"), str(template), *words],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )

    return generate
