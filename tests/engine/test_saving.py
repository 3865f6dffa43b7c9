"""A fault of the machine in the middle of a run: the last step that is done is saved first."""

import errno
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Train
from programs import last, resume, same_weights

import train as program
from engine.errors import BadInput, Diverged, Fault, Unsound
from engine.run_dir import RunDir


def fail_at(patch: pytest.MonkeyPatch, name: str, call: int, error: Exception) -> None:
    """Lets a function that train.py calls raise an error at one of its calls, counted from 0."""
    function, calls = getattr(program, name), count()

    def failing(*arguments: Any, **more: Any) -> Any:
        if next(calls) == call:
            raise error
        return function(*arguments, **more)

    patch.setattr(program, name, failing)


ERRORS = {
    "EIO": OSError(errno.EIO, "Input/output error", "train/a.png"),
    "ESTALE": OSError(errno.ESTALE, "Stale file handle", "train/a.png"),
    "EMFILE": OSError(errno.EMFILE, "Too many open files", "train/a.png"),
    "gone": FileNotFoundError(errno.ENOENT, "No such file or directory", "train/a.png"),
    "in a worker": OSError(
        "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        "last):\n  File \"x.py\", line 1\nOSError: [Errno 5] Input/output error: 'train/a.png'"
    ),
    "a worker died": RuntimeError("DataLoader worker exited unexpectedly"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_fault_while_loading_saves_the_last_step(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "generator", 3, ERRORS[kind])  # called once a batch is there
        assert train("run", "--save-every=500") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "saved step 3; go on with: python " in error and "--resume" in error
    assert ("train/a.png" in error) == isinstance(ERRORS[kind], OSError)
    assert last(Path("run"))["n_iter"] == 3


@pytest.mark.parametrize("call", [0, 3])
def test_a_file_that_cannot_be_read_is_named_with_what_is_saved(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: int
) -> None:
    """Before the first step there is nothing to go on with."""
    with monkeypatch.context() as patch:
        fail_at(patch, "generator", call, BadInput("train/a.png: damaged"))
        assert train("run", "--save-every=500") == 2
    error = capsys.readouterr().err
    saved = f"; saved step {call}; go on with: " if call else "\n"
    assert error.partition("train/a.png: damaged")[2].startswith(saved)
    assert error.count("\n") == 1


def test_what_is_saved_goes_on_as_if_nothing_had_been(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a validation, where the networks have the averaged weights."""
    assert train("undisturbed", "--ema=0.9") == 0
    with monkeypatch.context() as patch:
        fail_at(patch, "evaluate", 1, ERRORS["EIO"])
        assert train("run", "--ema=0.9") == 1
    assert resume(Path("run")) == 0
    assert same_weights(Path("run"), Path("undisturbed"))


@pytest.mark.parametrize(
    "error",
    [Unsound("cannot be written"), Diverged("not finite"), ValueError("a bug")],
    ids=["unsound", "diverged", "bug"],
)
def test_nothing_is_saved_after_other_errors(
    train: Train, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_at(monkeypatch, "generator", 3, error)
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="a bug"):
            train("run", "--save-every=500")
    else:
        assert train("run", "--save-every=500") == 1
    assert not list(Path("run/checkpoints").glob("*.pt"))


def test_a_save_that_fails_too_leaves_the_first_error(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_at(monkeypatch, "generator", 3, ERRORS["EIO"])

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert train("run") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train/a.png: Input/output error; go on with: python " in error


def test_process_0_saves_and_asks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    for rank in (0, 1):
        run: Any = RunDir.__new__(RunDir)
        run.writes, run.path = rank == 0, Path("run")
        run.world = type("World", (), {"size": 2})
        run.checkpoints = type(
            "Checkpoints",
            (),
            {"save": lambda self, state, alone: saved.append(alone), "wait": lambda self: None},
        )()
        state: Any = type("State", (), {"n_iter": 3})
        told = pytest.raises(Fault, match=r"train/a\.png: Input/output error.*--resume")
        with told, run.saving(state):
            raise ERRORS["EIO"]
    assert saved == [True]
