"""The programs of the project, run by tests as a user runs them, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from engine.errors import run_program
from engine.evaluation import Losses, forward

ROOT = Path(__file__).parents[1]
HELD = "tests/held.py"  # train.py that does not end before there is a file `go`
# Seconds until a test gives up waiting for what should take one. It is against hanging alone: no
# test says how fast a machine is.
PATIENCE = 180.0


@contextmanager
def command_line(program: str, *words: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words])
        yield


def status(main: Callable[[], int], program: str, *words: str) -> int:
    """Runs a program in this process and returns its exit status."""
    threads = torch.get_num_threads()
    try:
        with command_line(program, *words), pytest.raises(SystemExit) as ended:
            run_program(main)
    finally:
        torch.set_num_threads(threads)  # --threads is for that run alone
    assert isinstance(ended.value.code, int)
    return ended.value.code


def resume(run: Path, *options: str) -> int:
    """Goes on with a run in this process, as one does by hand, and returns the exit status."""
    return status(train.main, "train.py", f"--run-dir={run}", "--resume", *options)


def refusal(
    capsys: pytest.CaptureFixture[str], main: Callable[[], int], program: str, *words: str
) -> str:
    """Runs a program that has to end with status 2 and one line on stderr; returns that line."""
    capsys.readouterr()
    before = files()
    assert status(main, program, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{program}: error: "), error
    assert error.count("\n") == 1, error
    assert files() == before, "something was written"
    return error


def train_refuses(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line in which train.py refuses what it was given."""
    return refusal(capsys, train.main, "train.py", *words)


def files() -> dict[Path, int]:
    """The files below the current folder, with their times of change, but for the locks of runs."""
    found = (path for path in Path().rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in found}


def start(program: str, *words: str) -> "subprocess.Popen[str]":
    """Starts a program as a process, and as the leader of a group with its workers."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / program), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=None if os.name == "nt" else heed_signals,
    )


def heed_signals() -> None:
    """Tests in the background of a shell, or under nohup, inherit that some are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for_step(process: "subprocess.Popen[str]", run: Path, n_iter: int) -> None:
    """Returns as soon as the running `process` has saved step `n_iter`, as last.pt too.

    That gets its name after the checkpoint with the number of the step, and before the next one.
    """
    deadline = time.monotonic() + PATIENCE
    while saved_steps(run)[-1:] <= [n_iter]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no checkpoint after step {n_iter} in {run}"
        time.sleep(0.005)


def saved_steps(run: Path) -> list[int]:
    """The steps of which there is a checkpoint, in rising order."""
    return sorted(int(path.stem[5:]) for path in (run / "checkpoints").glob("iter-*.pt"))


def last(run: Path) -> dict[str, Any]:
    """The content of the checkpoint last.pt."""
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors in a checkpoint, by their place: weights, and what optimizers remember."""
    if isinstance(state, Tensor):
        return {name: state}
    if isinstance(state, list | tuple):
        state = dict(enumerate(state))
    if not isinstance(state, dict):
        return {}
    parts = [tensors(value, f"{name}/{key}") for key, value in state.items()]
    return {place: tensor for part in parts for place, tensor in part.items()}


def same_weights(run: Path, other: Path) -> bool:
    """Whether two runs ended after the same step with the same bits."""
    one, two = last(run), last(other)
    ours, theirs = tensors(one), tensors(two)
    assert ours, f"no tensors in the checkpoint of {run}"
    assert one["n_iter"] == two["n_iter"]
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def points(run: Path) -> list[dict[str, Any]]:
    """The points of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def at_step(patch: pytest.MonkeyPatch, n_iter: int, act: Callable[[Losses], Losses | None]) -> None:
    """Calls `act` on the losses of step `n_iter`, counted from 0; they become what it returns.

    The run must start at step 0, with a single micro-batch for each step.
    """
    steps = count()

    def with_fault(*arguments: Any) -> Losses:
        losses = forward(*arguments)
        return (act(losses) or losses) if next(steps) == n_iter else losses

    patch.setattr(train, "forward", with_fault)
