"""The hook that finishes a project: CPU or CUDA without a GPU, files, git, the next steps."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from conftest import PATIENCE, ROOT, TASKS, TEMPLATE, Project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Bake = Callable[..., Project]
Generate = Callable[..., subprocess.CompletedProcess[str]]

HOOK = (ROOT / "hooks/post_gen_project.py").read_text(encoding="utf-8")
needs_posix = pytest.mark.skipif(os.name == "nt", reason="the fake nvidia-smi is a shell script")

# A fake nvidia-smi: the header of a real one, and what it answers when asked for the GPUs.
HEADER = "| NVIDIA-SMI 570.1    Driver Version: 570.1    CUDA Version: {cuda} |"
HEADER_610 = "| NVIDIA-SMI 610.4    KMD Version: 610.4    CUDA UMD Version: {cuda} |"
SMI = 'case "$1" in --query*) printf "{gpus}";; *) echo "{header}";; esac'


def smi(cuda: str, gpus: str = "8.0\\n", header: str = HEADER) -> str:
    """Returns a fake nvidia-smi."""
    return SMI.format(gpus=gpus, header=header.format(cuda=cuda))


DRIVERS = {
    "absent": (None, "cpu"),
    "new": (smi("13.2"), "cu130"),
    "new words": (smi("13.3", header=HEADER_610), "cu130"),
    "exactly 13.0": (smi("13.0"), "cu130"),
    "new driver, old GPU": (smi("13.0", "7.0\\n"), "cu126"),
    "new driver, an old and a new GPU": (smi("13.0", "6.1\\n9.0\\n"), "cu130"),
    "12.9": (smi("12.9"), "cu126"),
    "12.8, Blackwell": (smi("12.8", "12.0\\n"), "cu128"),
    "12.4": (smi("12.4"), "cu126"),
    "12.0": (smi("12.0"), "cu126"),
    "unknown GPU": (smi("13.0", "[N/A]\\n"), "cu130"),
    "unknown GPU, 12.8": (smi("12.8", ""), "cu126"),
    "old": (smi("11.8"), "cpu"),
    "very old": (smi("9.1", "3.5\\n"), "cpu"),
    "no version": (smi("N/A"), "cpu"),
    "garbage": ("printf '\\377\\376\\000 CUDA Version: x.y'", "cpu"),
    "silent": ("true", "cpu"),
    "no driver behind it": (f"{smi('13.0')}; exit 9", "cpu"),
    "crashing": ("kill -SEGV $$", "cpu"),
}


@pytest.fixture
def hook(tmp_path: Path) -> ModuleType:
    """The hook as a module; its answers are literals, as cookiecutter writes them."""
    path = tmp_path / "hook.py"
    path.write_text(re.sub(r"\{\{ cookiecutter\.(\w+) \| q \}\}", r'"\1"', HOOK), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("hook", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Returns a function that puts a fake nvidia-smi, or none, before everything else."""

    def install(script: str | None, first_line: str = "#!/bin/sh") -> None:
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir()
        # A program that fails hides the driver of the machine that runs the tests.
        (bin_folder / "nvidia-smi").write_text(f"{first_line}\n{script or 'exit 127'}\n")
        (bin_folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(bin_folder), prepend=os.pathsep)

    return install


def wheels(project: Project) -> set[str]:
    """Returns the wheel indexes that requirements.txt and pyproject.toml name."""
    uv = tomllib.loads(project.read("pyproject.toml"))["tool"]["uv"]
    pip = re.findall(r"(?m)^--extra-index-url (\S+)", project.read("requirements.txt"))
    assert len(pip) == len(uv["index"]) == 1 and uv["index"][0]["explicit"]
    source = {"index": uv["index"][0]["name"], "marker": "sys_platform != 'darwin'"}
    assert uv["sources"] == {"torch": source, "torchvision": source}
    return {*pip, uv["index"][0]["url"]}


@needs_posix
@pytest.mark.parametrize(("script", "index"), DRIVERS.values(), ids=DRIVERS)
def test_auto_takes_what_the_driver_can_run(
    hook: ModuleType, install_smi: Callable[[str | None], None], script: str | None, index: str
) -> None:
    install_smi(script)
    assert hook.choose_build("auto")[0] == index
    assert hook.choose_build("cuda")[0] == ("cu130" if index == "cpu" else index)
    assert hook.choose_build("cpu")[0] == "cpu"


@needs_posix
def test_a_driver_that_is_no_program(hook: ModuleType, install_smi: Callable[..., None]) -> None:
    install_smi("x", first_line="#!/no/such/interpreter")
    assert hook.choose_build("auto")[0] == "cpu"


def test_no_driver_at_all(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook.choose_build("auto")[0] == "cpu"


@needs_posix
def test_a_hanging_driver_is_left(
    hook: ModuleType, install_smi: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time limit is 5 s; here it passes at once, and the program is ended."""
    install_smi("exec sleep 60")
    started: list[subprocess.Popen[bytes]] = []

    class Impatient(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, input: None = None, timeout: float | None = None) -> tuple:  # type: ignore[type-arg]
            assert timeout and timeout <= 10
            started.append(self)
            return super().communicate(input, 0.05)

    monkeypatch.setattr(hook.subprocess, "Popen", Impatient)
    assert hook.choose_build("auto")[0] == "cpu"
    assert [process.wait(PATIENCE) for process in started] == [-9]


@needs_posix
@pytest.mark.parametrize(
    ("script", "accelerator", "index", "torch"),
    [
        (None, "auto", "cpu", "torch>=2.6"),
        (smi("12.2"), "auto", "cu126", "torch>=2.6,<2.14"),
        (smi("13.0"), "auto", "cu130", "torch>=2.6"),
        (smi("13.0"), "cpu", "cpu", "torch>=2.6"),
        (None, "cuda", "cu130", "torch>=2.6"),
    ],
)
def test_torch_and_torchvision_come_from_one_index(
    bake: Bake,
    install_smi: Callable[[str | None], None],
    script: str | None,
    accelerator: str,
    index: str,
    torch: str,
) -> None:
    install_smi(script)
    project = bake(accelerator=accelerator, description="torch>=2.6 #! whl/cpu")
    assert wheels(project) == {f"https://download.pytorch.org/whl/{index}"}
    about = tomllib.loads(project.read("pyproject.toml"))["project"]
    lines = project.read("requirements.txt").splitlines()
    for name in about["dependencies"]:
        assert name in lines
    assert torch in lines
    assert (f"/{index}  # auto: {index}\n" in project.read("requirements.txt")) == (
        accelerator == "auto"
    )
    assert ("<" in torch) == any(line.startswith("torchvision>=0.21,<") for line in lines)
    assert about["description"] == "torch>=2.6 #! whl/cpu"


def test_the_tables_limits_are_complete(hook: ModuleType) -> None:
    drivers = [driver for _, driver, _, _ in hook.BUILDS]
    assert drivers == sorted(drivers, reverse=True)
    for index, _, _, limits in hook.BUILDS:
        assert re.fullmatch(r"cu\d{3}", index)
        assert set(limits) in (set(), {"torch", "torchvision"})


@pytest.mark.parametrize("name", TASKS)
def test_the_chosen_task_is_moved_up(bake: Bake, name: str) -> None:
    project, task = bake(task=name, accelerator="cpu"), TEMPLATE / "tasks" / name
    assert not (project.path / "tasks").exists()
    for path in task.rglob("*"):
        if path.is_file() and not {"__pycache__", ".mypy_cache"} & set(path.parts):
            assert (project.path / path.relative_to(task)).is_file()
            assert not (TEMPLATE / path.relative_to(task)).exists(), "two files of one name"


def test_every_task_is_a_folder() -> None:
    choices = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["task"]
    folders = [path.name for path in (TEMPLATE / "tasks").iterdir() if path.is_dir()]
    assert sorted(folders) == sorted(choices)


def test_git_repository_without_a_commit(bake: Bake) -> None:
    project = bake(accelerator="cpu")
    assert project.run("git", "symbolic-ref", "HEAD").stdout == "refs/heads/main\n"
    assert project.run("git", "rev-parse", "HEAD").returncode != 0


@needs_posix
def test_without_git(generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    result = generate("accelerator=cpu", PATH=str(tmp_path / "bin"))
    assert result.returncode == 0 and result.stderr == ""
    assert not (tmp_path / "out/my_vision_project/.git").exists()
    assert (tmp_path / "out/my_vision_project/train.py").exists()


@needs_posix
def test_next_steps_are_quoted(generate: Generate, template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with blank & ünï 'quote'"
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(folder), str(template)]
    output = subprocess.run(
        [*command, "accelerator=cpu"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    step = next(line for line in output.splitlines() if line.startswith("    cd "))
    assert shlex.split(step) == ["cd", str(folder / "my_vision_project")]


def test_a_narrow_terminal_is_no_failure(template: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ünï"
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(folder), str(template)]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0
    assert (folder / "my_vision_project/pyproject.toml").is_file()


def test_hooks_and_extension_stay_short() -> None:
    for path in (ROOT / "hooks").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 110, path.name
    assert len((ROOT / "pt_template_answers.py").read_text().splitlines()) <= 140


def test_the_rendered_hooks_are_clean(hook: ModuleType) -> None:
    folder = Path(str(hook.__file__)).parent
    before = shutil.copy(ROOT / "hooks/pre_gen_project.py", folder / "before.py")
    after = shutil.copy(str(hook.__file__), folder / "after.py")
    for tool in (["ruff", "check", "--config", str(ROOT / "pyproject.toml")], ["mypy", "--strict"]):
        command = [sys.executable, "-m", *tool, str(before), str(after)]
        report = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert report.returncode == 0, report.stdout + report.stderr
