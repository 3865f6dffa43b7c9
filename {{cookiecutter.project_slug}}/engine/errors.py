"""One line for what the user can mend, a traceback for what is our own bug."""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

DONE, FAULT, BAD_INPUT, STOPPED = 0, 1, 2, 75  # the exit statuses of every program
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class BadInput(Exception):
    """Something the user gave is wrong. The text says what, where, and what to do, in one line."""

    def __init__(self, text: str) -> None:
        # A DataLoader worker sends its whole traceback as the text; ours is the end of it.
        super().__init__(" ".join(str(text).rsplit("BadInput: ", 1)[-1].split()))


class Fault(Exception):
    """Something outside went wrong, such as a full disk. The text is one line, as BadInput's."""


def run_program(main: Callable[[], int]) -> None:
    """Runs `main` and exits with its status; what is no bug of ours ends in one line."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that cannot be shown is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except BadInput as error:
        status = _complain(error, BAD_INPUT)
    except Fault as error:
        status = _complain(error, FAULT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try again at exit
        status = _complain("nobody reads the output any more", FAULT)
    except OSError as error:
        status = _complain(f"{error.filename or 'a file'}: {error.strerror or error}", FAULT)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is being written is finished
        status = _complain("interrupted", INTERRUPTED)
    except (MemoryError, RuntimeError, ValueError) as error:
        if not (remedy := _remedy(error)):
            raise
        status = _complain(*remedy)
    sys.exit(status)


def shorten(names: list[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _remedy(error: Exception) -> tuple[str, int] | None:
    """What to do about an error of PyTorch that is not the program's, and the exit status."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        less = "lower --batch-size (--accumulate keeps the virtual batch as it was) or --img-size"
        return f"out of memory: {less}", FAULT
    if "shared memory(shm)" in text or "unable to resize file" in text:
        text = "DataLoader worker found no room in /dev/shm"
    # Raised wherever the program is when a worker dies; "Caught" begins an error within a worker.
    if text.startswith("DataLoader worker") and "Caught" not in text:
        what = text.partition(". ")[0].rstrip(".")
        return (
            f"{what}: if memory is short, lower --workers or --batch-size; if /dev/shm is small, "
            "as in Docker, use --shm-size=8g or --workers 0"
        ), FAULT
    if "No working C++ compiler" in text or "working triton" in text:
        return "--compile: there is no compiler for it on this machine; leave it out", BAD_INPUT
    if text.startswith("Expected more than 1 value per channel when training"):
        return "--batch-size 1: batch norm needs more images, or larger ones", BAD_INPUT
    return None


def _complain(problem: object, status: int) -> int:
    print(f"{Path(sys.argv[0]).name}: error: {problem}", file=sys.stderr)
    return status
