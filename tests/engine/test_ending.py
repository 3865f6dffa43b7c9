"""However a run ends, it ends soon, says why in one line, and leaves nothing behind."""

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from conftest import Train
from faults import not_a_number
from marks import slow_after
from PIL import Image
from prefetch_generator import BackgroundGenerator
from programs import (
    PATIENCE,
    ROOT,
    at_step,
    heed_signals,
    last,
    resume,
    saved_steps,
    start,
    wait_for_step,
)

from engine.evaluation import Losses

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
needs_fork = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the worker inherits the fault by a fork"
)
SLOW = "tests/engine/slow.py"
NEVER = 3600.0  # seconds that nobody waits
LONG = ["--epochs=500", "--batch-size=2", "--save-every=1", "--no-cache"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert not [each for each in threading.enumerate() if isinstance(each, BackgroundGenerator)]
    assert set(multiprocessing.active_children()) <= before


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Waits for the end of a process and of its workers, which hold its output open as well."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.mark.parametrize("program", ["train", "test", "predict", "export", "tools.compare"])
def test_ctrl_c_ends_the_imports_in_one_line(program: str) -> None:
    # It sleeps shortly, again and again: a signal just before a sleep is heeded after it.
    slow = "import time\nprint('importing', flush=True)\nwhile True:\n    time.sleep(0.1)\n"
    Path("torch.py").write_text(slow)
    process = subprocess.Popen(
        [sys.executable, "-m", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(Path().absolute())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        name = program.rpartition(".")[2]
        assert end(process) == (130, "", f"{name}.py: error: interrupted\n")
    finally:
        process.kill()


@pytest.mark.slow
def test_a_closed_standard_output_is_named(small: list[str]) -> None:
    """As with `train.py | head`."""
    process = start("train.py", *small, "--run-dir=run")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "train.py: error: standard output was closed\n"
    process.stderr.close()
    assert process.wait(PATIENCE) == 1


@contextmanager
def slow_run(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """train.py in the folder `run`, as a process in which a worker has come to a stop."""
    process = start(SLOW, *words, *LONG, "--run-dir=run", "--workers=1")
    try:
        wait_for_step(process, Path("run"), 7)
        Path("stall").write_text(str(NEVER))
        wait_for(lambda: Path("stalled").exists() and Path("stalled").read_text())
        time.sleep(0.5)  # by now all that was loaded before is used up
        yield process
    finally:
        process.kill()  # workers end with it
        process.communicate()


def stall_workers(patch: pytest.MonkeyPatch, images: int, seconds: float = NEVER) -> None:
    """Lets each worker of this process read so many images; the next takes time, and fails."""
    seen, open_image = count(), Image.open

    def open_slowly(path: Path) -> Image.Image:  # read_image calls it
        if multiprocessing.parent_process() is not None and next(seen) >= images:
            time.sleep(seconds)
            raise OSError("the disk does not answer")
        return open_image(path)

    patch.setattr(Image, "open", open_slowly)


def fail(losses: Losses) -> None:
    raise ZeroDivisionError("a fault of the model")


def kill_workers(losses: Losses | None = None) -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)


@needs_fork
@pytest.mark.parametrize("stalled", slow_after(1, [False, True]))
@pytest.mark.parametrize("fault", ["an error", "not finite", "a killed worker", "a bad file"])
def test_a_fault_in_mid_run(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stalled: bool,
    fault: str,
) -> None:
    """With workers that are stuck in the next batches, or not."""
    if fault == "a bad file":
        stall_workers(monkeypatch, images=14, seconds=1.0 if stalled else 0.0)
    elif stalled:
        stall_workers(monkeypatch, images=14)
    if fault != "a bad file":
        act = {"an error": fail, "not finite": not_a_number, "a killed worker": kill_workers}[fault]
        at_step(monkeypatch, 6, act)
    begun = time.monotonic()
    words = [*LONG, "--workers=1"]
    if fault == "an error":  # a bug, whose traceback is needed
        with pytest.raises(ZeroDivisionError):
            train("run", *words)
    else:
        assert train("run", *words) == (2 if fault == "a bad file" else 1)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        expected = {
            "not finite": "step 7 is not finite",
            "a killed worker": "a DataLoader worker died",
            "a bad file": "not readable as an image (the disk does not answer)",
        }
        assert expected[fault] in error
    assert time.monotonic() - begun < PATIENCE
    assert saved_steps(Path("run"))[-1] >= 6


@pytest.mark.slow
@needs_fork
def test_a_signal_while_the_run_waits_for_data(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed after the step, for which the data come late."""
    open_image = Image.open
    stall_workers(monkeypatch, images=14, seconds=1.0)
    slow = Image.open

    def late(path: Path) -> Image.Image:
        try:
            return slow(path)
        except OSError:
            return open_image(path)

    monkeypatch.setattr(Image, "open", late)
    at_step(monkeypatch, 6, send_later)
    assert train("run", *LONG, "--workers=1") == 75
    assert saved_steps(Path("run"))[-1] in (7, 8)


def send_later(losses: Losses) -> None:
    threading.Timer(0.3, signal.raise_signal, (signal.SIGTERM,)).start()


@pytest.mark.slow
def test_a_process_whose_worker_is_killed_ends(small: list[str]) -> None:
    with slow_run(*small) as process:
        os.kill(int(Path("stalled").read_text()), signal.SIGKILL)
        code, _, error = end(process)
    assert (code, error.count("\n")) == (1, 1)
    assert "a DataLoader worker died" in error
    assert last(Path("run"))["n_iter"] >= 7


@pytest.mark.slow
def test_a_process_that_cannot_read_a_file_ends(spoiled: Path, small: list[str]) -> None:
    path = max(spoiled.glob("train/**/*.png"))
    path.write_bytes(path.read_bytes()[:50])
    process = start("train.py", *small, *LONG, f"--data={spoiled}", "--workers=1", "--run-dir=run")
    _, error = process.communicate(timeout=PATIENCE)  # so the workers have ended
    assert (process.returncode, error.count("\n")) == (2, 1)
    assert f"{path}: not readable as an image" in error


FULL_DISK = f"""
import sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from tensorboardX import event_file_writer

def write_event(self, event):
    if threading.current_thread() is threading.main_thread():
        return  # the head of the file
    time.sleep(1)
    raise OSError(28, "No space left on device")

event_file_writer.EventsWriter.write_event = write_event
import train
train.run_program(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 100])
def test_a_disk_that_is_full_after_a_while_ends_the_records_and_not_the_run(
    small: list[str], steps: int
) -> None:
    """The queue of TensorBoard's thread is full by the time at which the thread fails, or not."""
    Path("full.py").write_text(FULL_DISK)
    words = [*small, f"--log-every={steps}", "--run-dir=run"]
    process = start(str(Path("full.py").absolute()), *words)
    try:
        _, error = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, error.count("\n")) == (0, 1), error
    assert "No space left on device; the run goes on without a record" in error
    assert last(Path("run"))["n_iter"] > 0


@pytest.mark.parametrize("name", slow_after(1, ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"]))
def test_a_signal_saves_like_sigterm(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run, number = Path("run"), getattr(signal, name)
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:  # these tests run under nohup
        signal.signal(number, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            at_step(patch, 7, lambda losses: signal.raise_signal(number))
            assert train(run) == 75
    finally:
        signal.signal(number, before)
    streams = capsys.readouterr()
    assert streams.err == ""
    assert streams.out.splitlines()[-2].startswith(f"{name}: saved step 8 ")
    assert last(run)["n_iter"] == 8
    assert resume(run) == 0


def test_a_signal_that_is_ignored_stops_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 7, lambda losses: signal.raise_signal(signal.SIGHUP))
        assert train("run") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_process_at_once(small: list[str]) -> None:
    """Though the step under way waits for data that do not come."""
    with slow_run(*small) as process:
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers too
            time.sleep(0.3)
        code, _, error = end(process)
    assert code == 130
    assert error == "slow.py: error: interrupted\n"
    assert last(Path("run"))["n_iter"] >= 7


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_terminal_that_is_closed_saves(small: list[str], workers: int) -> None:
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    run = Path("run")
    words = [*small, *LONG, f"--run-dir={run}", f"--workers={workers}", "--log-every=1"]
    try:
        pid, terminal = pty.fork()
    except OSError:  # a sandbox without /dev/pts
        pytest.skip("no terminals on this machine")
    if not pid:
        heed_signals()
        os.execv(sys.executable, [sys.executable, str(ROOT / "train.py"), *words])
    ended: list[int] = []

    def has_ended() -> bool:
        if not ended:
            waited, status = os.waitpid(pid, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(status)] * (waited == pid))
        return bool(ended)

    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.set_blocking(terminal, False)
        shown = b""
        deadline = time.monotonic() + PATIENCE
        while saved_steps(run)[-1:] < [7] or b"epoch 2/500" not in shown:
            assert time.monotonic() < deadline and not has_ended(), shown
            with suppress(BlockingIOError):
                shown += os.read(terminal, 65536)
        os.close(terminal)
        deadline = time.monotonic() + PATIENCE
        while not has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        if not has_ended():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert ended == [75]
    assert last(run)["n_iter"] == saved_steps(run)[-1] >= 7
