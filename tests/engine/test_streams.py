"""Standard streams that are closed, full, or read by nobody: what is computed is not lost."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from conftest import Train
from programs import PATIENCE, ROOT, last, resume, saved_steps, start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a shell, and SIGPIPE")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
ENDLESS = ["--epochs=100000", "--val-every=100000", "--overfit-one-batch", "--log-every=1"]


def in_shell(closed: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python with some of its streams closed."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_run_needs_no_streams(small: list[str], closed: str) -> None:
    ended = in_shell(closed, str(ROOT / "train.py"), *small, "--run-dir=run")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ("done: best" in ended.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert last(Path("run"))["n_iter"] == saved_steps(Path("run"))[-1] > 0


@pytest.mark.slow
def test_standard_input_that_is_closed_names_no_file(finished: Path) -> None:
    words = [str(ROOT / "predict.py"), f"--checkpoint={finished}", "--device=cpu", "-"]
    ended = in_shell("<&-", *words)
    assert ended.returncode == 2
    assert ended.stderr.startswith("predict.py: error: -: standard input names no file")
    assert ended.stderr.count("\n") == 1


def test_no_file_is_opened_in_the_place_of_a_closed_stream() -> None:
    """It would get what libraries write to standard output or standard error."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine.errors import begin\n"
    program += "begin(__name__)\nwith open('file', 'w') as file: sys.exit(file.fileno() < 3)"
    assert in_shell("<&- >&- 2>&-", "-c", program).returncode == 0


@needs_full
@pytest.mark.slow
def test_a_log_on_a_full_disk_ends_no_run(small: list[str]) -> None:
    words = [sys.executable, str(ROOT / "train.py"), *small, "--run-dir=run"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        assert ended.returncode == 0
        assert ended.stderr == (
            "warning: standard output: No space left on device; what is printed to it is lost\n"
        )
        words += ["--resume", "--epochs=3"]  # which is worth a warning
        ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=full, text=True)
        assert ended.returncode == 0
        assert ended.stdout.count("warning: standard error: No space left on device") == 1
        assert "done: best" in ended.stdout
        words[-1] = "--epochs=4"
        assert subprocess.run(words, stdout=full, stderr=full).returncode == 0


def read_until(text: str, stream: IO[str]) -> None:
    while text not in (line := stream.readline()):
        assert line, "it has ended"


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_has_gone_stops_the_run_and_it_is_saved(
    train: Train, small: list[str], both: bool
) -> None:
    """As with `train.py | head`, or a `tee` that was killed."""
    run = Path("run")
    process = start("train.py", *small, *ENDLESS, f"--run-dir={run}", "--save-every=1000000")
    assert process.stdout is not None and process.stderr is not None
    try:
        read_until("step 3: ", process.stdout)
        assert not saved_steps(run)
        process.stdout.close()
        if both:
            process.stderr.close()
        error = "" if both else process.stderr.read()
        assert process.wait(3 * PATIENCE) == 75
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    (step,) = saved_steps(run)
    assert last(run)["n_iter"] == step >= 3
    if not both:
        assert re.fullmatch(
            rf"warning: standard output was closed; saved step {step} as run/checkpoints/last\.pt; "
            r"go on with: python \S+ --run-dir run --resume\n",
            error,
        )
    assert resume(run, f"--epochs={step}", "--val-every=1") == 0  # an epoch has several steps


@pytest.mark.slow
def test_other_programs_end_when_nobody_reads(finished: Path, images: Path) -> None:
    words = [f"--checkpoint={finished}", "--device=cpu", str(images / "test")]
    process = start("predict.py", *words)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "predict.py: error: standard output was closed\n"
    process.stderr.close()
    assert process.wait(3 * PATIENCE) == 1
