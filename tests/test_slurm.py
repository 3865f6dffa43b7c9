"""tools/slurm/train.sbatch with stand-ins for Slurm's programs: it saves and is queued again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, Project

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")

STAND_INS = {
    # Runs the step here, as srun does on each node, and hands its signals on.
    "srun": '#!/bin/sh\nshift\nexec "$@"\n',
    "scontrol": "#!/bin/sh\n"
    'if [ "$1" = show ]; then echo localhost; else echo "$@" >> queued; fi\n',
}
SMALL = ["--img-size=8", "--width=8", "--blocks=1", "--save-every=2", "--threads=1"]


@pytest.fixture
def job(project: Project, tmp_path: Path) -> tuple[list[str], Path, dict[str, str]]:
    """The command of the job, its folder, and its environment."""
    folder = shutil.copytree(project.path, tmp_path / "project")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "here", "NNODES": "1", "GPUS_ON_NODE": "2"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    env |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable}
    return ["bash", "tools/slurm/train.sbatch", *SMALL], folder, {**os.environ, **env}


def test_before_the_time_limit_it_saves_and_is_queued_again(
    job: tuple[list[str], Path, dict[str, str]], full: bool
) -> None:
    if not full:
        pytest.skip("takes half a minute; `make stress` has it")
    command, folder, env = job
    run = folder / "runs/slurm-7"
    with open(folder / "out.txt", "w") as out:
        first = subprocess.Popen(
            [*command, "--epochs=1000"], cwd=folder, env=env, stdout=out, stderr=out
        )
        deadline = time.monotonic() + PATIENCE
        while not (run / "checkpoints/last.pt").exists():
            assert first.poll() is None, (folder / "out.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGUSR2)
        assert first.wait(PATIENCE) == 0
    saved = re.search(r"saved step (\d+)", (folder / "out.txt").read_text())
    assert saved
    assert (folder / "queued").read_text() == "requeue 7\n"

    epochs = int(saved[1]) // (1301 // 128) + 1
    again = subprocess.run(
        [*command, f"--epochs={epochs}"],
        cwd=folder,
        env={**env, "SLURM_RESTART_COUNT": "1"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert "resumed after step" in again.stdout and "done: best" in again.stdout
    assert (folder / "queued").read_text() == "requeue 7\n", "it was not queued once more"


def test_a_run_that_fails_is_not_queued_again(
    job: tuple[list[str], Path, dict[str, str]], full: bool
) -> None:
    if not full:
        pytest.skip("torchrun tries again three times; `make stress` has it")
    command, folder, env = job
    failed = subprocess.run(
        [*command, "--data=nowhere"], cwd=folder, env=env, capture_output=True, text=True
    )
    assert failed.returncode != 0
    assert "nowhere" in failed.stderr
    assert not (folder / "queued").exists()


def test_the_script_passes_shellcheck(project: Project) -> None:
    if not (program := shutil.which("shellcheck", path=os.path.dirname(sys.executable))):
        pytest.skip("shellcheck is not installed")
    script = project.path / "tools/slurm/train.sbatch"
    report = subprocess.run([program, script], capture_output=True, text=True)
    assert report.returncode == 0, report.stdout
