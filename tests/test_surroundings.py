"""What surrounds the code of a project: the editor's settings, citation, a container."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

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
    lines = re.sub(r"\\\n *", "", project.read(DOCKERFILE)).splitlines()
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


@pytest.mark.skipif(
    not shutil.which("useradd") or os.geteuid() != 0, reason="needs useradd, and root to run it"
)
@pytest.mark.parametrize("uid", ["0", "1", "501", "1000", "1234567"])
def test_the_container_can_be_anyones(project: Project, tmp_path: Path, uid: str) -> None:
    """`--build-arg UID=$(id -u)`, also of root, of a Mac's first user, of a large directory's."""
    (command,) = (rest for name, rest in instructions(project) if "useradd" in rest)
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for name, line in [
        ("passwd", "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n"),
        ("group", "root:x:0:\ndaemon:x:1:\n"),
        ("shadow", ""),
        ("login.defs", "UID_MIN 1000\nUID_MAX 60000\n"),
    ]:
        (root / "etc" / name).write_text(line)
    shell = f'useradd() {{ command useradd --prefix "{root}" "$@"; }}\n'
    shell += "mkdir() { :; }\nchown() { :; }\n" + command
    done = subprocess.run(["sh", "-c", shell], env={**os.environ, "UID": uid}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"\nowner:x:{uid}:" in (root / "etc/passwd").read_text()


OUTPUTS = [
    *("data/digits/test/7/004.png", "runs/a/config.txt", "runs/a/checkpoints/best.json"),
    *("predictions.csv", "predictions/cat.png", "compare.html", "slurm-17.out"),
    *(".venv/bin/python", ".mypy_cache/3.11/x.json", "engine/__pycache__/x.pyc"),
    *(".requirements-17.txt", "my_vision_project.egg-info/PKG-INFO"),
]
OWN = [
    "my_images/dataset.json",
    "presets/mine.txt",
    "docs/page.html",
    "tests/model.json",
    "notes.txt",
]


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
@pytest.mark.parametrize("task", TASKS)
def test_what_programs_write_is_not_committed(bake: Callable[..., Project], task: str) -> None:
    """By default, and by the names that the docs give; the owner's files are."""
    project = bake(task=task, accelerator="cpu")
    texts = [path.read_text("utf-8") for path in project.path.rglob("*.md")]
    named = {name for text in texts for name in re.findall(r"--out[ =]([\w./-]*\w)", text)}
    named |= {name.replace(".safetensors", ".json") for name in named}
    assert {"model.onnx", "model.json"} < named
    for name in [*OUTPUTS, *named]:
        assert project.run("git", "check-ignore", "-q", name).returncode == 0, name
    for name in [*OWN, *(path.relative_to(project.path) for path in project.files())]:
        assert project.run("git", "check-ignore", "-q", str(name)).returncode == 1, name


def test_what_programs_write_is_not_in_the_container(project: Project) -> None:
    patterns = project.read(".dockerignore").splitlines()
    for name in [*OUTPUTS, "model.onnx", "runs.pt2", "model.safetensors", "model.json"]:
        parts = Path(name).parts
        heads = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        tails = [part for pattern in patterns if (part := pattern.removeprefix("**/")) != pattern]
        assert any(fnmatch(head, pattern) for head in heads for pattern in patterns) or any(
            fnmatch(part, pattern) for part in parts for pattern in tails
        ), name
    for name in ["train.py", "requirements.txt", "engine", "tools", "presets"]:
        assert not any(fnmatch(name, pattern) for pattern in patterns), name


def test_the_project_installs_in_place(project: Project, tmp_path: Path) -> None:
    """By `pip install -e .`, which editors and other tools call; there is no package in it."""
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("needs setuptools, which pip downloads otherwise")
    copy = shutil.copytree(project.path, tmp_path / "copy")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target"]
    done = subprocess.run(
        [*pip, str(tmp_path / "site"), "-e", "."], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "site").glob("my_vision_project-*.dist-info"))


def test_the_dockerfile_passes_hadolint(project: Project) -> None:
    if not (program := shutil.which("hadolint", path=os.path.dirname(sys.executable))):
        pytest.skip("hadolint is not installed")
    report = subprocess.run([program, project.path / DOCKERFILE], capture_output=True, text=True)
    assert report.returncode == 0 and not report.stdout, report.stdout
