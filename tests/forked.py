"""Programs of a rendered project, run as children that this process forks.

PyTorch is imported beforehand, so each starts in a moment and many can be run. Each has its own
process group, as a job of a shell has.
"""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # the bits of a run depend on the number of threads

import tensorboardX  # noqa: F401  imported here for the children, as are the next ones
import torch
import torchvision.datasets
import torchvision.transforms.v2  # noqa: F401
import tqdm  # noqa: F401


def start(
    flags: list[str],
    prepare: Callable[[], object] = lambda: None,
    program: str = "train",
    output: str = "output.txt",
) -> int:
    """Starts a program in the current folder; what it prints goes to the file `output`."""
    torch.set_num_threads(1)
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)  # those of pytest are files of its own
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.argv = [f"{program}.py", *flags]
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        from engine.errors import run_program  # type: ignore[import-not-found]

        run_program(importlib.import_module(program).main)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))
    finally:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def finish(pid: int) -> int:
    """Waits for a program; returns its exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
