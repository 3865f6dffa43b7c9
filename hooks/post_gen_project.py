"""Finishes a new project: the files of its task, its PyTorch build, and what to do next."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

TASK = {{ cookiecutter.task | q }}
ACCELERATOR = {{ cookiecutter.accelerator | q }}

# PyTorch's CUDA builds, newest first: wheel index; oldest driver, by its CUDA version; oldest GPU,
# by its compute capability; limits where an index has ended, or pip takes newer ones elsewhere.
BUILDS = [
    ("cu130", (13, 0), (7, 5), {}),
    ("cu128", (12, 8), (10, 0), {"torch": ",<2.12", "torchvision": ",<0.27"}),
    ("cu126", (12, 0), (5, 0), {"torch": ",<2.14", "torchvision": ",<0.29"}),
]
STEPS = """Next:
    cd {here}
    make train
    make test
or, without make:
    {py} -m venv .venv
    {python} -m pip install -r requirements.txt
    {python} train.py
    {python} -m pytest"""


def largest_version(pattern: str, *command: str) -> tuple[int, int]:
    """Returns the largest version X.Y in what a command prints, (0, 0) if it fails or hangs."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        text = process.communicate(timeout=5)[0].decode(errors="replace")
    except OSError:
        return 0, 0
    except subprocess.TimeoutExpired:
        process.kill()  # without waiting: a program stuck in a broken driver may never end
        return 0, 0
    found = [] if process.returncode else re.findall(pattern, text, re.MULTILINE)
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def choose_build(accelerator: str) -> tuple[str, dict[str, str], str]:
    """Returns the wheel index, the limits that it sets, and the reason."""
    if accelerator == "cpu":
        return "cpu", {}, "as you chose"
    driver = largest_version(r"CUDA (?:UMD )?Version *: *(\d+)\.(\d+)", "nvidia-smi")
    query = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    gpu = largest_version(r"^(\d+)\.(\d+)\s*$", *query) if any(driver) else (0, 0)
    reason = f"a driver for CUDA {driver[0]}.{driver[1]}" if any(driver) else "no NVIDIA driver"
    for index, oldest_driver, oldest_gpu, limits in BUILDS:
        if driver >= oldest_driver and (gpu if any(gpu) else (9, 0)) >= oldest_gpu:
            return index, limits, reason
    index, version = (BUILDS[0][0], 580) if accelerator == "cuda" else ("cpu", 525)
    return index, {}, f"{reason} here; CUDA needs driver {version} or newer"


def write_build(files: set[str], index: str, limits: dict[str, str]) -> None:
    """Puts torch and torchvision on one wheel index, for pip and for uv."""
    for file in map(Path, files):
        text = re.sub("(?m)^#! (.*)", lambda m: m[1].replace("cpu", index), file.read_text("utf-8"))
        text = re.sub(r'(?m)^ *"?(torch\w*)>=[\d.]+', lambda m: m[0] + limits.get(m[1], ""), text)
        file.write_text(text, "utf-8", newline="\n")


def move_up(task: str, keep: bool, before: set[str]) -> None:
    """Puts the files of the task where they belong; `keep` leaves those that are there."""
    for path in sorted(Path("tasks", task).rglob("*")):
        target = Path(*path.parts[2:])
        if path.is_file() and not (keep and os.path.lexists(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    for path in sorted([Path("tasks"), *Path("tasks").rglob("*")], reverse=True):
        if path.as_posix() not in before:
            path.rmdir() if path.is_dir() else path.unlink()


if __name__ == "__main__":
    note = Path("tasks/.before")  # of the hook before this one; none in a new folder
    before = set(json.loads(note.read_text("utf-8")) if note.exists() else [])
    keep = Path("tasks/.overwrite").read_text("utf-8") == "no\n"
    move_up(TASK, keep, before)
    wheels, ends, why = choose_build(ACCELERATOR)
    new = {"requirements.txt", "pyproject.toml"} - (before if keep else set())
    write_build(new, wheels, ends)
    build = f"{wheels} build ({why})" if "requirements.txt" in new else "as requirements.txt was"
    here, py, python = shlex.quote(os.getcwd()), "python3", ".venv/bin/python"
    if os.name == "nt":
        here, py, python = f'"{os.getcwd()}"', "py", r".venv\Scripts\python"
    with contextlib.suppress(OSError, UnicodeError):  # a closed or a narrow terminal
        print(f"PyTorch: {build}\n{STEPS.format(here=here, py=py, python=python)}")
