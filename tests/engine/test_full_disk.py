"""A disk that is full: one line names the file, and no half of anything is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import PATIENCE, ROOT

# A disk of its own for one command, which nobody else sees and which ends with it.
ON_A_DISK = 'mount -t tmpfs -o size="$0" disk disk && eval "$1" && shift && exec "$@"'
FULL = "cat /dev/zero > disk/other 2> /dev/null || true"


def on_a_disk(size: str, prepare: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program with a disk of some size as the folder `disk`, after a shell's command."""
    Path("disk").mkdir(exist_ok=True)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_DISK, size, prepare]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [*command, sys.executable, *words]
    return subprocess.run(program, env=env, capture_output=True, text=True, timeout=PATIENCE)


def can_mount() -> bool:
    try:
        words = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "disk", "/tmp"]
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_mount(), reason="a user may not mount a disk here"),
]


@pytest.mark.parametrize("size", ["4k", "32k", "96k"])
def test_a_run_ends_in_one_line(small: list[str], size: str) -> None:
    words = [*small, "--run-dir=disk/run", "--epochs=20", "--log-every=1"]
    ended = on_a_disk(size, "", str(ROOT / "train.py"), *words)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith("train.py: error: disk/run/")
    assert "No space left on device" in ended.stderr


@pytest.mark.parametrize(
    ("program", "words", "named"),
    [
        ("test.py", ["--checkpoint={run}", "--report=disk/report"], "disk/report/metrics.json"),
        ("predict.py", ["--checkpoint={run}", "{images}/test", "--out=disk/out"], "disk/out"),
        ("export.py", ["--checkpoint={run}", "--format=pt2", "--out=disk/a.pt2"], "disk/a.pt2"),
        (
            "export.py",
            ["--checkpoint={run}", "--format=safetensors", "--out=disk/a.safetensors"],
            "disk/a.json",
        ),
        ("compare.py", ["{run}", "--out=disk/compare.html"], "disk/compare.html"),
    ],
)
def test_the_file_is_named(
    finished: Path, images: Path, program: str, words: list[str], named: str
) -> None:
    words = [word.format(run=finished, images=images) for word in words]
    if program != "compare.py":
        how = [str(ROOT / program), *["--device=cpu"] * (program != "export.py")]
    else:
        how = ["-m", "tools.compare"]
    ended = on_a_disk("8k", FULL, *how, *words)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith(f"{program}: error: "), ended.stderr
    assert named in ended.stderr and ended.stderr.endswith(": No space left on device\n")


def test_weights_without_room_leave_no_metadata(finished: Path) -> None:
    """The JSON beside them, which is smaller, would fit."""
    words = [str(ROOT / "export.py"), f"--checkpoint={finished}", "--format=safetensors"]
    script = "import os, runpy, sys; sys.argv = sys.argv[1:]\n"
    script += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    script += "finally: print(os.listdir('disk'))"
    ended = on_a_disk("8k", "", "-c", script, *words, "--out=disk/a.safetensors")
    assert ended.stderr == "export.py: error: disk/a.safetensors: No space left on device\n"
    assert ended.stdout == "[]\n"
