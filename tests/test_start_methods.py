"""Programs with worker processes end, whatever happens and however the platform starts processes.

Linux forks them up to Python 3.13 and takes a fork server from 3.14 on; macOS and Windows spawn.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from conftest import PATIENCE, SMALL, Project, Tell
from forked import left_over, members

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

# Run by each interpreter at its start, those of workers too. While there is a file `stall`, a
# worker that reads an image writes its process number into the file `stalled` and waits.
SITE = """
import multiprocessing, os, time
from PIL import Image

multiprocessing.set_start_method(os.environ["START_METHOD"])
multiprocessing.set_forkserver_preload(["torchvision"])  # newer Pythons preload train.py
open_image = Image.open

def open_slowly(*words, **more):
    if os.path.exists("stall") and multiprocessing.parent_process() is not None:
        with open("stalled.tmp", "w") as file:
            file.write(str(os.getpid()))
        os.replace("stalled.tmp", "stalled")
        while os.path.exists("stall"):
            time.sleep(0.05)
    return open_image(*words, **more)

Image.open = open_slowly
"""
DIED = "error: a DataLoader worker died"


@dataclass(frozen=True)
class Trained:
    """A project with a run, and a folder that sets the start method of its programs."""

    project: Path
    data: Path
    checkpoint: Path
    site: Path

    def command(self, program: str) -> list[str]:
        """A program that loads with two workers for a while, in the current folder."""
        words = {
            "train": ["--run-dir=run", f"--data={self.data}", *SMALL, "--no-cache", "--workers=2"],
            "test": [f"--checkpoint={self.checkpoint}", "--report=report", "--workers=2"],
            "predict": [f"--checkpoint={self.checkpoint}", str(self.data), "--workers=2"],
        }[program]
        return [sys.executable, str(self.project / f"{program}.py"), *words, "--quiet"]


@pytest.fixture(scope="module")
def trained(bake: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    project = bake(accelerator="cpu")
    done = project.run("python", "train.py", "--run-dir=first", *SMALL, "--width=4", "--blocks=0")
    assert done.returncode == 0, done.stderr
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(SITE)
    folder = project.path
    return Trained(folder, folder / "data/digits", folder / "first/checkpoints/best.pt", site)


METHODS = multiprocessing.get_all_start_methods()
ENDINGS = ["itself", "a killed worker", "SIGTERM", "Ctrl-C"]
ALL = list(product(["train", "test", "predict"], METHODS, ENDINGS))
SOME = [("train", "forkserver", "itself")]


@pytest.mark.parametrize(("program", "method", "ending"), ALL)
def test_a_program_with_workers_ends(
    trained: Trained,
    tmp_path: Path,
    full: bool,
    tell: Tell,
    program: str,
    method: str,
    ending: str,
) -> None:
    if not full and (program, method, ending) not in SOME:
        pytest.skip("`make stress` has it")
    command = trained.command(program)
    if ending != "itself":
        (tmp_path / "stall").touch()
        command += ["--epochs=500"] * (program == "train")
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(trained.site), "START_METHOD": method},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell inherit that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        begun = act(process, tmp_path, ending)
        out, err = process.communicate(timeout=PATIENCE)
        took = time.monotonic() - begun
        assert left_over(process.pid) == []
    finally:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    if ending != "itself":
        tell(f"{took:.1f} s")
    told = {"itself": "", "SIGTERM": "", "a killed worker": DIED, "Ctrl-C": "error: interrupted"}
    assert told[ending] in err
    assert err.count("\n") == bool(told[ending]), err
    assert (
        process.returncode
        == {
            "itself": 0,
            "a killed worker": 1,
            "SIGTERM": 75 if program == "train" else -signal.SIGTERM,  # nothing has to be saved
            "Ctrl-C": 130,
        }[ending]
    )
    if ending == "itself" and program == "train":
        assert out.startswith("done: ")
    if ending == "SIGTERM" and program == "train":
        assert out.startswith("SIGTERM: saved step ")


def act(process: "subprocess.Popen[str]", folder: Path, ending: str) -> float:
    """Disturbs a program whose workers have come to a stop; returns when that was."""
    if ending == "itself":
        return time.monotonic()
    deadline = time.monotonic() + PATIENCE
    while not (folder / "stalled").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    begun = time.monotonic()
    if ending == "a killed worker":
        os.kill(int((folder / "stalled").read_text()), signal.SIGKILL)
    elif ending == "SIGTERM":
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: to the workers too
        (folder / "stall").unlink()
    while ending == "Ctrl-C" and process.poll() is None:  # again, as a person does
        assert time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    return begun
