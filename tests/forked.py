"""Programs of a rendered project, run as children that this process forks.

PyTorch is imported beforehand, so each starts in a moment and many can be run. Each has its own
process group, as a job of a shell has, and ends as an interpreter of its own does.
"""

import atexit
import faulthandler
import importlib
import multiprocessing
import multiprocessing.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure  # noqa: F401  imported here for the children, as are the next ones
import pytest
import skimage.metrics  # noqa: F401
import tensorboardX  # noqa: F401
import torch
import torchvision.datasets
import torchvision.transforms.v2  # noqa: F401
import tqdm  # noqa: F401
from conftest import PATIENCE


def start(
    flags: list[str],
    prepare: Callable[[], object] = lambda: None,
    program: str = "train",
    output: str = "output.txt",
    errors: str | None = None,
) -> int:
    """Starts a program in the current folder; returns its process id, which is its group's too.

    Args:
        flags: Its command line.
        prepare: Called in the child, before the program is imported.
        program: A module with a function `main`.
        output: The file for what it prints.
        errors: The file for its stderr; None: as `output`.
    """
    torch.set_num_threads(1)  # whatever OMP_NUM_THREADS is: threads do not outlive a fork
    for path in (Path("go"), *Path().glob("stepping*")):  # what `hold` has made for another
        path.unlink(missing_ok=True)
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        for number, name in ((1, output), (2, errors)):
            anew = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(name, anew, 0o644) if name else 1, number)
        sys.stdout = os.fdopen(1, "w", closefd=False)  # those of pytest are files of its own
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        faulthandler.enable(sys.stderr)  # SIGABRT prints where every thread is
        sys.argv = [f"{program.rpartition('.')[2]}.py", *flags]
        # Tests that run in the background of a shell, or by nohup, inherit that these are ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        # So their workers get what `prepare` has changed; test_start_methods.py has the others.
        multiprocessing.set_start_method("fork", force=True)
        atexit._clear()  # what pytest does at exit
        atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
        forget_projects()
        prepare()
        from engine.errors import run_program  # type: ignore[import-not-found]

        run_program(importlib.import_module(program).main)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    try:
        # What an interpreter does at its end. All of it would take a second, and PyTorch's part
        # fails after a fork.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run(folder: Path, program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a folder, which is its project, to its end."""
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        files = [f"{scratch}/{name}.txt" for name in ("output", "errors")]
        find = lambda: sys.path.insert(0, str(folder))  # noqa: E731
        name = program.removesuffix(".py").replace("/", ".")
        status = finish(start(list(flags), find, name, *files))
        output, errors = (Path(file).read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess([program, *flags], status, output, errors)


def hold(rank: int = 0) -> None:
    """Keeps train.py from being over before a test has disturbed it. For `prepare`.

    It makes a file `stepping<rank>` when it begins its first step, and waits before its last two
    until there is a file `go`.
    """
    import train  # type: ignore[import-not-found]

    rate, parent = train.learning_rate, os.getppid()

    def held(opt: object, n_iter: int, total: int) -> float:
        Path(f"stepping{rank}").touch()
        while n_iter >= total - 2 and not Path("go").exists() and os.getppid() == parent:
            time.sleep(0.005)
        return float(rate(opt, n_iter, total))

    train.learning_rate = held


def forget_projects() -> None:
    """Forgets the modules of another project that another test has imported in this process."""
    own = {path.stem for path in Path().glob("*.py")} | {"engine", "task", "tools"}
    for name in [name for name in sys.modules if name.split(".")[0] in own]:
        del sys.modules[name]


def finish(pid: int) -> int:
    """Waits for a program; returns its exit status, negative if a signal ended it.

    One that hangs is killed, and the test fails. A whole run may take minutes where it is slow.
    """
    patience = 5 * PATIENCE
    if (status := ended(pid, patience)) is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise AssertionError(f"not over after {patience} s")
    return status


def ended(pid: int, patience: float = PATIENCE) -> int | None:
    """The exit status of a program, or None if it goes on for ever."""
    deadline = time.monotonic() + patience
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def members(group: int) -> list[int]:
    """The processes of a group that are alive; zombies are not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def workers_of(pid: int, least: int = 1) -> list[int]:
    """The worker processes of a run, as soon as there are so many: its first steps need none."""
    deadline = time.monotonic() + PATIENCE
    while len(found := [child for child in members(pid) if child != pid]) < least:
        assert time.monotonic() < deadline, f"fewer than {least} workers were started"
        time.sleep(0.005)
    return found


def left_over(group: int) -> list[int]:
    """The processes of a group that do not end."""
    deadline = time.monotonic() + PATIENCE
    while (found := members(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    """Whether a program is still running; its status can be asked for later."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait_for(path: Path, pid: int, patience: float = PATIENCE) -> None:
    """Returns as soon as a running program has made a file."""
    deadline, going = time.monotonic() + patience, True
    while not path.exists():
        assert going, f"it ended without {path}"
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.002)
        going = alive(pid)  # before the next look: it may make the file and end
