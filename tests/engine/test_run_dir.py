"""A run folder belongs to one process at a time."""

import errno
import os
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import Train
from marks import slow_after
from programs import HELD, last, resume, start, wait_for_step

from engine.errors import BadInput
from engine.run_dir import RunDir

LONG = ["--epochs=500", "--batch-size=2"]


def make(resume: bool = True) -> RunDir:
    return RunDir(Namespace(data="images", run_dir="run", resume=resume, keep=3))


def content(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize("saved", [False, True])
def test_a_second_process_in_a_run_folder_is_refused(
    train: Train, small: list[str], capsys: pytest.CaptureFixture[str], saved: bool
) -> None:
    run = Path("run")
    if saved:
        assert train(run, "--epochs=1") == 0
    with make():
        before = content(run)
        capsys.readouterr()
        for second in (lambda: train(run), lambda: resume(run, *small)):
            assert second() == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert f"--run-dir {run}" in error
            assert content(run) == before
        assert "another process is running in it" in error
    assert resume(run, *small) == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_kill_releases_the_folder(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("run")
    process = start(HELD, *small, *LONG, f"--run-dir={run}", "--save-every=1")
    try:
        wait_for_step(process, run, 3)
        assert resume(run) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "another process is running in it" in error
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    n_iter = last(run)["n_iter"]
    assert n_iter >= 3
    assert resume(run, "--epochs=1", "--save-every=1000") == 0


def test_of_two_that_begin_at_once_one_is_refused() -> None:
    """Both have found the folder free before either begins."""
    Path("run").mkdir()
    first, second = make(), make()
    with first, pytest.raises(BadInput, match="another process"), second:
        pass
    with second:  # released
        pass


@pytest.mark.parametrize("number", slow_after(1, ["ENOLCK", "ENOSYS", "EOPNOTSUPP"]))
def test_without_locks_there_is_one_warning_and_no_marker(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: str,
) -> None:
    """As on NFS without its lock daemon, or Lustre without flock. A killed run can be resumed."""
    fcntl = pytest.importorskip("fcntl")
    run = Path("run")

    def flock(file: object, how: int) -> None:
        raise OSError(getattr(errno, number), "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert train(run, "--epochs=1") == 0
    assert resume(run) == 0
    warnings = capsys.readouterr().err.splitlines()
    line = "warning: run: cannot be locked on this file system: start no second process in it"
    assert warnings == [line] * 2  # one for each
    with make(), make():  # nothing says that another process is there, or was
        pass


def test_a_folder_that_cannot_be_locked_for_another_reason_is_not_left(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def acquire(self: object) -> None:
        Path("run/.lock").touch()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    assert train("run") == 2
    error = capsys.readouterr().err
    assert error == "train.py: error: --run-dir run: Input/output error; name another folder\n"
    assert not Path("run").exists()


@pytest.mark.parametrize("what", ["the folder", "its lock"])
def test_a_folder_that_may_not_be_written_to_is_refused(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Also where the tests are root's, who may write everywhere."""

    def acquire(self: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    Path("run").mkdir()
    if what == "its lock":
        monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert train("run") == 2
    error = capsys.readouterr().err
    assert error == "train.py: error: --run-dir run: Permission denied; name another folder\n"
    assert Path("run").is_dir()


def test_a_folder_without_a_name_is_another_one_for_each_run() -> None:
    opt = Namespace(data="images", run_dir=None, resume=False, keep=3)
    runs = [RunDir(opt) for _ in range(3)]  # in the same second, before one of them begins
    for run in runs:
        with run:
            assert run.path.is_dir()
    assert len({run.path for run in runs}) == 3


def test_a_refused_run_makes_no_folder(train: Train) -> None:
    assert train("run", "--device=tpu") == 2
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["images/train/run", "images/val", "images/test/a/run"])
def test_a_run_does_not_lie_among_images(name: str) -> None:
    """Its pictures would be trained on by the next one, or be a class."""
    with pytest.raises(BadInput, match="lies among the images of --data"):
        RunDir(Namespace(data="images", run_dir=name, resume=False, keep=3))
    assert not Path("images").exists()
