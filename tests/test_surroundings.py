"""What surrounds the code of a project: the editor's settings, citation, a container."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import yaml
from conftest import TASKS, Project

DOCKERFILE = "tools/docker/Dockerfile"
PARSE = "import json, sys, options; [options.parse(words) for words in json.loads(sys.argv[1])]"


def launched(project: Project) -> dict[str, dict]:
    """The configurations of launch.json by what they start."""
    launch = json.loads(project.read(".vscode/launch.json"))
    assert {item["type"] for item in launch["configurations"]} == {"debugpy"}
    names = [item["name"] for item in launch["configurations"]]
    assert len(names) == len(set(names)) >= 4
    asked = set(re.findall(r"\$\{input:(\w+)\}", json.dumps(launch)))
    assert asked == {item["id"] for item in launch["inputs"]}
    return {item["name"]: item for item in launch["configurations"]}


@pytest.mark.parametrize("task", TASKS)
def test_the_editor_starts_programs_with_options_that_they_have(
    bake: Callable[..., Project], task: str
) -> None:
    project = bake(task=task, accelerator="cpu")
    training = []
    for item in launched(project).values():
        words, program = item.get("args", []), item.get("program", "").rpartition("/")[2]
        assert item["cwd"] == "${workspaceFolder}"
        if program == "train.py":
            training.append(words)
        elif program == "test.py":
            shown = project.run("python", program, "--help").stdout
            assert all(f"{word} " in shown for word in words if word.startswith("--")), words
        else:
            assert item["module"] == "pytest" and words == ["${file}"]
    parsed = project.run("python", "-c", PARSE, json.dumps(training))
    assert parsed.returncode == 0, parsed.stderr
    assert [] in training and any("--overfit-one-batch" in words for words in training)


def test_the_editor_finds_tests_and_tools(project: Project) -> None:
    settings = json.loads(project.read(".vscode/settings.json"))
    assert settings["python.testing.pytestEnabled"] is True
    assert all((project.path / name).is_dir() for name in settings["python.testing.pytestArgs"])
    wanted = json.loads(project.read(".vscode/extensions.json"))["recommendations"]
    assert {"ms-python.python", "ms-python.debugpy", "charliermarsh.ruff"} < set(wanted)


@pytest.mark.parametrize(
    ("author", "license", "cited"),
    [
        ('A "B" {c} 🚀', "MIT", 'A "B" {c} 🚀'),
        ("null", "none", "null"),
        ("", "MIT", "The authors of Cats: 1"),
        (" ", "MIT", "The authors of Cats: 1"),
    ],
)
def test_the_citation_names_the_author(
    bake: Callable[..., Project], author: str, license: str, cited: str
) -> None:
    answers = {"project_name": "Cats: 1", "description": " ", "author_name": author}
    project = bake(**answers, license=license, accept_hooks=False)
    assert yaml.safe_load(project.read("docs/CITATION.cff")) == {
        "cff-version": "1.2.0",
        "message": "If you use this software, please cite it.",
        "type": "software",
        "title": "Cats: 1",
        "authors": [{"name": cited}],
        **({"license": "MIT"} if license == "MIT" else {}),
    }


def instructions(project: Project) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with its arguments."""
    lines = project.read(DOCKERFILE).splitlines()
    found = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in found]


def test_the_container_takes_the_steps_of_the_readme(project: Project) -> None:
    """In its own folder, with the same requirements.txt and so the same build of PyTorch."""
    steps = [rest for name, rest in instructions(project) if name == "RUN" and ".venv" in rest]
    (command,) = (json.loads(rest) for name, rest in instructions(project) if name == "CMD")
    assert ("ENV", 'PATH="/project/.venv/bin:$PATH"') in instructions(project)
    taken = [step.replace("--no-cache-dir ", "") for step in steps]
    taken += [f".venv/bin/{' '.join(command)}"]
    own = re.findall(r"(?m)^(?:python3|\.venv/bin/python) .*$", project.read("README.md"))
    assert len(taken) == 3 and taken == own[:3]


def test_the_container_keeps_its_layers_and_is_not_root(project: Project) -> None:
    names = [" ".join(instruction) for instruction in instructions(project)]
    order = [
        next(i for i, line in enumerate(names) if line.startswith(start))
        for start in ("FROM python:", "USER $UID", "COPY --chown=owner requirements.txt ./")
    ]
    install = next(i for i, line in enumerate(names) if "pip install" in line)
    code = names.index("COPY --chown=owner . .")
    assert order == sorted(order) and order[-1] < install < code
    assert not [line for line in names if line.startswith("USER") and line != "USER $UID"]
    left_out = set(project.read(".dockerignore").splitlines())
    assert {".git", ".venv", "data", "runs"} <= left_out
    for text in (project.read(DOCKERFILE), project.read("docs/remote.md")):
        assert "docker build -f tools/docker/Dockerfile" in text
        assert "--shm-size 8g" in text and "--gpus all" in text
        assert '-v "$PWD/data:/project/data" -v "$PWD/runs:/project/runs"' in text


def test_the_dockerfile_passes_hadolint(project: Project) -> None:
    if not (program := shutil.which("hadolint", path=os.path.dirname(sys.executable))):
        pytest.skip("hadolint is not installed")
    report = subprocess.run([program, project.path / DOCKERFILE], capture_output=True, text=True)
    assert report.returncode == 0 and not report.stdout, report.stdout
