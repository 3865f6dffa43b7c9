"""Many processes: torchrun divides a step among them, and nothing else changes."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Train
from programs import (
    HELD,
    PATIENCE,
    ROOT,
    last,
    points,
    resume,
    same_weights,
    saved_steps,
    wait_for_step,
)

from engine import distributed
from engine.distributed import TreeSum
from engine.errors import Fault

# More of everything random than in a SMALL run, on one thread whatever the number of processes.
STEP = ["--accumulate=4", "--batch-size=2", "--threads=1", "--save-every=1"]
LONG = "--epochs=20"
# By its own name a machine cannot always be found, for which torchrun waits some minutes.
LAUNCHER = ["torch.distributed.run", "--standalone", "--local-addr=localhost"]
needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch.distributed is not in this build"
)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds processes in /proc"
)


def torchrun(
    processes: int,
    small: list[str],
    *words: str,
    restarts: int = 0,
    program: str = "train.py",
) -> "subprocess.Popen[str]":
    """Starts a program on several processes, as the leaders of a group."""
    launcher = [*LAUNCHER, f"--nproc-per-node={processes}"]
    launcher += [f"--max-restarts={restarts}", str(ROOT / program)]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *small, *STEP, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(launcher: "subprocess.Popen[str]") -> list[int]:
    """The process ids of the processes that torchrun started, in the order of their ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()

    def rank(pid: str) -> str:
        return re.findall("\0RANK=([0-9]+)", Path(f"/proc/{pid}/environ").read_text())[0]

    return [int(pid) for pid in sorted(children, key=rank)]  # not the order of their starts


def ours(errors: str) -> list[str]:
    """The lines of train.py among those of torchrun."""
    return [line for line in errors.splitlines() if line.startswith("train.py: ")]


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 6, 8, 12])
def test_the_sum_of_a_step_does_not_depend_on_who_adds(micro_batches: int) -> None:
    draw = random.Random(0)
    values = [torch.tensor([draw.gauss(0, 10.0**k)]) for k in range(micro_batches)]

    def total(values: list[torch.Tensor], of: int) -> torch.Tensor:
        tree = TreeSum(of)
        for value in values:
            tree.add([value.clone()])
        return tree.total()[0]

    whole = total(values, micro_batches)
    assert whole.item() == pytest.approx(sum(value.item() for value in values), rel=1e-5)
    processes = 2
    while micro_batches % processes == 0:
        each = micro_batches // processes
        sums = [total(values[r * each : (r + 1) * each], micro_batches) for r in range(processes)]
        while len(sums) > 1:  # neighbours first, as the processes do
            sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=True)]
        assert sums[0].equal(whole)
        processes *= 2


def test_a_fold_can_be_used_again() -> None:
    tree = TreeSum(3)
    for _ in range(2):
        for value in (1.0, 2.0, 4.0):
            tree.add([torch.tensor([value])])
        assert tree.total()[0].item() == 7


@pytest.mark.slow
@needs_gloo
def test_one_seed_gives_the_same_bits_on_two_processes(train: Train, small: list[str]) -> None:
    assert train("one", *STEP) == 0
    out, errors = torchrun(2, small, "--run-dir=many").communicate(timeout=PATIENCE)
    assert "done: best" in out, errors
    assert "4 micro-batches of 2 = 8 images, on 2 processes" in out
    assert out.count("run: many") == 1
    assert same_weights(Path("many"), Path("one"))

    def curves(run: str) -> list[dict]:
        """The points without what depends on the time."""
        timed = ("images_per_second", "data_wait", "efficiency")
        return [
            {**p, "seconds": 0, "values": {k: v for k, v in p["values"].items() if k not in timed}}
            for p in points(Path(run))
        ]

    assert curves("many") == curves("one")


EACH_ITS_OWN = """
import os, runpy, sys
root = sys.argv.pop(1 + int(os.environ["RANK"]))
del sys.argv[1]
sys.path[0] = root
runpy.run_path(os.path.join(root, "train.py"), run_name="__main__")
"""


@pytest.mark.slow
@needs_gloo
@pytest.mark.parametrize("differ", [False, True])
def test_processes_with_different_code_are_refused(
    small: list[str], tmp_path: Path, differ: bool
) -> None:
    """As on two machines with copies of the project, one of them out of date."""
    copy = tmp_path / "copy"
    for folder in ("engine", "task", "tools"):
        shutil.copytree(ROOT / folder, copy / folder)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)
    if differ:
        for name in ("networks.py", "train.py"):
            (copy / name).write_text((copy / name).read_text() + "CHANGED = 1\n")
    Path("start.py").write_text(EACH_ITS_OWN)
    words = ["--nproc-per-node=2", "start.py", str(ROOT), str(copy)]
    ended = subprocess.run(
        [sys.executable, "-m", *LAUNCHER, *words, *small, *STEP, "--run-dir=many"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    lines = ours(ended.stderr)
    if differ:
        (line,) = lines
        host = re.escape(socket.gethostname())
        assert re.search(f"networks.py: that of process 0 on {host} is not that of process 1", line)
        assert not Path("many").exists()
    else:
        assert (ended.returncode, lines) == (0, [])


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is long enough to be killed, on one process."""
    run = tmp_path_factory.mktemp("undisturbed") / "one"
    assert train(run, *STEP, LONG) == 0
    return run


@pytest.mark.slow
@needs_gloo
@needs_proc
def test_a_killed_process_ends_all_and_the_run_goes_on_with_fewer(
    small: list[str], undisturbed: Path
) -> None:
    launcher = torchrun(2, small, "--run-dir=many", LONG, program=HELD)
    wait_for_step(launcher, Path("many"), 3)
    os.kill(ranks(launcher)[1], signal.SIGKILL)
    Path("go").touch()
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 1
    (line,) = ours(errors)
    assert "process 0 of 2" in line and "--resume" in line
    assert resume(Path("many")) == 0
    assert same_weights(Path("many"), undisturbed)


@pytest.mark.slow
@needs_gloo
@needs_proc
def test_with_max_restarts_it_goes_on_by_itself(small: list[str], undisturbed: Path) -> None:
    launcher = torchrun(2, small, "--run-dir=many", LONG, restarts=3, program=HELD)
    wait_for_step(launcher, Path("many"), 3)
    os.kill(ranks(launcher)[0], signal.SIGKILL)
    Path("go").touch()
    out, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, errors
    assert "resumed after step" in out and "done: best" in out
    assert same_weights(Path("many"), undisturbed)


@pytest.mark.slow
@needs_gloo
@needs_proc
def test_a_signal_to_one_process_stops_all_after_the_same_step(small: list[str]) -> None:
    launcher = torchrun(2, small, "--run-dir=many", "--epochs=1000")
    wait_for_step(launcher, Path("many"), 3)
    os.kill(ranks(launcher)[1], signal.SIGTERM)
    out, errors = launcher.communicate(timeout=PATIENCE)
    assert "SIGTERM: saved step" in out
    assert not ours(errors)
    # Of a process that still runs when torchrun notices the end of the other it tells nothing.
    assert set(re.findall(r"exitcode  : (\S+)", errors)) == {"75"}
    assert last(Path("many"))["n_iter"] == saved_steps(Path("many"))[-1]


@pytest.mark.slow
@needs_gloo
def test_a_step_that_cannot_be_divided_is_refused_in_one_line(small: list[str]) -> None:
    launcher = torchrun(2, small, "--run-dir=many", "--accumulate=9")
    _, errors = launcher.communicate(timeout=PATIENCE)
    (line,) = ours(errors)
    assert "--accumulate 9" in line and "1, 3 or 9" in line
    assert not Path("many").exists()


@needs_gloo
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs (CUDA)")
def test_two_gpus_give_the_bits_of_one(small: list[str]) -> None:
    words = ["--device=cuda", "--deterministic", "--precision=fp32"]
    launcher = torchrun(2, small, "--run-dir=two", *words)
    out, errors = launcher.communicate(timeout=PATIENCE)
    assert "done: best" in out, errors
    launcher = torchrun(1, small, "--run-dir=one", *words)
    out, errors = launcher.communicate(timeout=PATIENCE)
    assert "done: best" in out, errors
    assert same_weights(Path("two"), Path("one"))


@pytest.mark.parametrize(
    ("address", "text", "told"),
    [
        ("127.0.1.1", "Connection refused", "HOST is 127.0.1.1 for itself; set GLOO_SOCKET_IFNAME"),
        ("10.0.0.1", "connect to 127.0.1.1:5", "one's name is 127.x; set GLOO_SOCKET_IFNAME"),
        ("10.0.0.1", "Connection refused", "another process has ended"),
    ],
)
def test_a_loopback_among_several_machines_is_told(
    monkeypatch: pytest.MonkeyPatch, address: str, text: str, told: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "HOST")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: address)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(Fault, match=told), distributed._communication(meeting=True):
        raise RuntimeError(text)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # one machine, where a loopback is right
    with pytest.raises(Fault, match="another process"), distributed._communication(meeting=True):
        raise RuntimeError(text)
