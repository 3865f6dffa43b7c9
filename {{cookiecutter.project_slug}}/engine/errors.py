"""How a program ends: exit statuses, errors of one line, signals.

Every program imports this module first. From then on Ctrl-C ends even the imports in one line.
"""

import gc
import io
import multiprocessing
import os
import re
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

DONE, FAULT, BAD_INPUT, STOPPED = 0, 1, 2, 75  # the exit statuses of every program
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
STOP_SIGNALS = tuple(  # Windows has only some of them
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class BadInput(Exception):
    """An option, a file or a data set is wrong. The text says what, where and what to do."""

    def __init__(self, text: object) -> None:
        # A DataLoader worker sends its whole traceback as the text, which ends with ours.
        super().__init__(" ".join(str(text).rsplit("BadInput: ", 1)[-1].split()))


class Fault(Exception):
    """The machine failed, as with a full disk. The text is one line, like that of BadInput."""


class Diverged(Fault):
    """A loss or a gradient is not finite."""


# Messages of PyTorch that users meet, with the remedy and the exit status.
OUT_OF_MEMORY = r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED"
REMEDIES = (
    (
        OUT_OF_MEMORY,
        "out of memory: lower --batch-size (a larger --accumulate keeps the step as it was) or "
        "--img-size",
        FAULT,
    ),
    (
        r"shared memory\(shm\)|unable to resize file",
        "/dev/shm is full: use --workers 0, or in Docker --shm-size=8g",
        FAULT,
    ),
    (
        r"^DataLoader worker .*exited unexpectedly|^DataLoader worker .*is killed",
        "a DataLoader worker died: if memory is short, lower --workers or --batch-size; if "
        "/dev/shm is small, as in Docker, use --shm-size=8g or --workers 0",
        FAULT,
    ),
    (
        r"No working C\+\+ compiler|working triton|Failed to find C compiler",
        "--compile: there is no compiler on this machine; leave the option out",
        BAD_INPUT,
    ),
    (
        r"too old to be supported by the triton",
        "--compile: this GPU is too old for it; leave the option out",
        BAD_INPUT,
    ),
    (
        r"^Expected more than 1 value per channel when training",
        "--batch-size 1: batch norm needs more images, or larger ones",
        BAD_INPUT,
    ),
    (
        r"(\S+) does not have a deterministic implementation",
        r"--deterministic: \1 has no deterministic implementation on this device; leave the option "
        "out, or replace the layer (with --padding reflect: use zeros)",
        BAD_INPUT,
    ),
    (
        r"no kernel image is available",
        "this build of PyTorch has no code for this GPU; install the build that README.md names "
        "for it, or use --device cpu",
        FAULT,
    ),
)


def run_program(main: Callable[[], int]) -> None:
    """Runs `main` and exits with its status. Errors that a user can act on end in one line."""
    if IS_PROGRAM:
        gc.freeze()  # saves most of a second at exit, and memory in the workers
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored in background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # printing a file name must not fail
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a file being written is finished
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
    """A line with the remedy for an error of PyTorch, and the exit status; None for a bug."""
    text = "out of memory" if isinstance(error, MemoryError) else " ".join(str(error).split())
    if "DataLoader worker" in text and "Caught" in text and not re.search(OUT_OF_MEMORY, text):
        text = text[text.index("Caught") :]  # an error within a worker, not its death
    for pattern, remedy, status in REMEDIES:
        if found := re.search(pattern, text):
            return found.expand(remedy), status
    return None


def _complain(problem: object, status: int) -> int:
    print(f"{_program()}: error: {problem}", file=sys.stderr)
    return status


def _program() -> str:
    return Path(sys.argv[0]).name


class StopSignal:
    """True once a signal has asked the run to stop.

    The signals are SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2. A signal is only noted,
    so that the step under way can be finished and saved. A SIGINT after that ends the process at
    once, without saving: an exception raised while a lock is held could make the run hang.
    """

    def __init__(self) -> None:
        self.received = ""  # the name of the first signal
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores SIGHUP
                signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return bool(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            end_at_once(number, frame)
        self.received = self.received or signal.Signals(number).name
        if number == getattr(signal, "SIGHUP", None):
            _leave_closed_terminal()


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Handles SIGINT by one line and the end of this process and its workers."""
    kill_workers()
    line_break = b"\n" * os.isatty(2)  # after the progress bar
    os.write(2, line_break + f"{_program()}: error: interrupted\n".encode(errors="replace"))
    os._exit(INTERRUPTED)


def kill_workers() -> None:
    """Kills the worker processes that are still there.

    multiprocessing would send them SIGTERM at exit, which they block, and wait for ever.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _leave_closed_terminal() -> None:
    """Sends output to nowhere if the terminal is gone, where every print would fail."""
    for stream in (1, 2):
        # A terminal that is gone is a device still, but no terminal any more.
        if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _watch_imports() -> bool:
    """Handles Ctrl-C while the modules are imported; returns whether a program of ours is run."""
    if multiprocessing.parent_process() is not None:  # Ctrl-C is for the trainer, not its workers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    root = Path(__file__).resolve().parents[1]
    ours = main.parent in (root, root / "tools")
    # A test or a notebook that imports a program keeps its own way with Ctrl-C.
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    return ours


IS_PROGRAM = _watch_imports()
