"""How a program ends: exit statuses, errors of one line, signals.

A program calls `begin` before its other imports and `run_program` at its end.
"""

import errno
import gc
import io
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

from engine.text import printable

DONE, FAULT, BAD_INPUT, STOPPED = 0, 1, 2, 75  # the exit statuses of every program
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PROJECT = Path(__file__).resolve().parents[1]
LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ  # by torchrun, as one of several processes
SILENT = LAUNCHED and os.environ["RANK"] != "0"  # process 0 alone prints
OUTPUT_CLOSED = "SIGPIPE"  # the signal for writing to a closed pipe; Python raises an error instead
STOP_SIGNALS = tuple(  # Windows has only some of them
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class BadInput(Exception):
    """An option, a file or a data set is wrong. The text says what, where and what to do."""

    def __init__(self, text: object) -> None:
        super().__init__(printable(_without_traceback(str(text))))


class Fault(Exception):
    """The machine failed, as with a full disk. The text is one line, like that of BadInput."""


class Unsound(Fault):
    """A fault after which nothing is saved: the state may be spoiled or that of half a step."""


class Diverged(Unsound):
    """A loss or a gradient is not finite."""


# Messages of PyTorch that users meet, and the remedy. One that starts with an option is bad input.
OUT_OF_MEMORY = r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED"
REMEDIES = {
    OUT_OF_MEMORY: "out of memory: lower --batch-size (a larger --accumulate keeps the step as it "
    "was), or use smaller images",
    r"shared memory\(shm\)|unable to resize file": "/dev/shm is full: use --workers 0, or in "
    "Docker --shm-size=8g",
    r"^DataLoader worker .*(exited unexpectedly|is killed)": "a DataLoader worker died: if memory "
    "is short, lower --workers or --batch-size; if /dev/shm is small, as in Docker, use "
    "--shm-size=8g or --workers 0",
    r"No working C\+\+ compiler|working triton|Failed to find C compiler": "--compile: there is no "
    "compiler on this machine; leave the option out",
    r"too old to be supported by the triton": "--compile: this GPU is too old for it; leave the "
    "option out",
    r"^Expected more than 1 value per channel when training": "--batch-size 1: batch norm needs "
    "more images, or larger ones",
    r"(\S+) does not have a deterministic implementation": r"--deterministic: \1 has no "
    "deterministic implementation on this device; leave the option out, or replace the layer "
    "(padding with a reflection by padding with zeros)",
    r"no kernel image is available": "this build of PyTorch has no code for this GPU; install the "
    "build that docs/build.md names for it, or use --device cpu",
}


# What an error begins with, None if it is not to be printed. Replaced once processes have met.
error_prefix: Callable[[], str | None] = lambda: None if SILENT else ""  # noqa: E731


def begin(name: str) -> None:
    """Prepares the process of a program, before its imports, which take seconds.

    Ctrl-C ends them in one line. Of the processes of torchrun the first one alone prints. A closed
    standard stream becomes the null device.

    `name` is the `__name__` of the program: a test or a notebook that imports it keeps its own
    SIGINT.
    """
    for number in range(3):  # else the next file opened would take the place of a closed stream
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    if SILENT:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  to the end of the process
    if multiprocessing.parent_process() is not None:  # Ctrl-C is for the trainer, not its workers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif name == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def run_program(main: Callable[[], int]) -> None:
    """Runs `main` and exits with its status. Errors that a user can act on end in one line."""
    is_program = main.__module__ == "__main__"  # and not imported by a test or a notebook
    if is_program:
        gc.freeze()  # saves most of a second at exit, and memory in the workers
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored in background jobs
        signal.signal(signal.SIGINT, _interrupt)
    _prepare_streams()
    try:
        status = main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a file being written is finished
        status = _complain("interrupted", INTERRUPTED)
    except Exception as error:
        if not (known := explain(error)):
            if error_prefix() is not None and SILENT:
                sys.stderr = sys.__stderr__  # the first error of several processes
            raise
        status = _complain(*known)
    if is_program:  # a signal ends the interpreter if its end takes long
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    if LAUNCHED:
        _leave_group(status)
    sys.exit(status)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handles the first SIGINT as Python does; the second one ends the process at once."""
    signal.signal(signal.SIGINT, _end_at_once)
    raise KeyboardInterrupt


def _leave_group(status: int) -> None:
    """Ends this process if there was an error, without the cleanup that waits for the others."""
    if status not in (DONE, STOPPED):
        kill_workers()
        for stream in (sys.stdout, sys.stderr, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(status)
    for number in STOP_SIGNALS:  # torchrun sends one to those that leave after the first
        signal.signal(number, signal.SIG_IGN)


def shorten(names: list[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def _without_traceback(text: str) -> str:
    """The text of an error; from a DataLoader worker it comes as the end of a traceback."""
    from_worker = "Original Traceback" in text
    return text.strip().splitlines()[-1].partition(": ")[2] if from_worker else text


def explain(error: Exception) -> tuple[object, int] | None:
    """The line for an error, and the exit status; None for a bug."""
    if isinstance(error, BadInput | Fault):
        return error, BAD_INPUT if isinstance(error, BadInput) else FAULT
    if isinstance(error, OSError):
        return _reason(error), FAULT
    text = "out of memory" if isinstance(error, MemoryError) else " ".join(str(error).split())
    if "DataLoader worker" in text and "Caught" in text and not re.search(OUT_OF_MEMORY, text):
        text = text[text.index("Caught") :]  # an error within a worker, not its death
    for pattern, remedy in REMEDIES.items():
        found = re.search(pattern, text)
        if found and isinstance(error, MemoryError | RuntimeError | ValueError):
            return found.expand(remedy), BAD_INPUT if remedy.startswith("--") else FAULT
    return None


def _reason(error: OSError) -> str:
    """What an error of the system says in a line, after the place if it is in the owner's code."""
    text = str(error)
    own = _without_traceback(text)
    if own == text:
        own = f"{error.filename or 'a file'}: {error.strerror or text}"
        text = "".join(traceback.format_tb(error.__traceback__))
    elif found := re.fullmatch(r"\[Errno -?\d+\] (.+): '(.+)'", own):  # as Python words it
        own = f"{found[2]}: {found[1]}"
    for name, number in reversed(re.findall(r'File "(.+)", line (\d+)', text)):
        path = Path(name)
        if path.is_relative_to(PROJECT) and "site-packages" not in path.parts:
            where = path.relative_to(PROJECT)  # the innermost frame of the project
            owners = where.parts[0] not in ("engine", "task")
            return f"{where.as_posix()}:{number}: {own}" if owners else own
    return own


def _complain(problem: object, status: int) -> int:
    if (prefix := error_prefix()) is not None:
        stream = sys.__stderr__ if SILENT else sys.stderr
        if os.environ.get("PROJECT_TRACEBACK") and sys.exc_info()[0] is not None:
            traceback.print_exc(file=stream)
        print(f"{_program()}: error: {prefix}{printable(problem)}", file=stream)
    return status


def _program() -> str:
    return Path(sys.argv[0]).name


class StopSignal:
    """Whether one of STOP_SIGNALS has asked the run to stop: true in the process that received it.

    It is only noted, so that the current step is finished and saved. A SIGINT (Ctrl-C) after that
    ends the process at once, without saving: an exception raised while a lock is held could make
    the run hang. `highest` returns the highest of the numbers that all processes give it.
    """

    def __init__(self, highest: Callable[[int], int] = lambda number: number) -> None:
        self.highest = highest
        self.received = ""  # the name of the first signal
        if hasattr(signal, OUTPUT_CLOSED):
            _Stream.stop = self
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores SIGHUP
                signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return bool(self.received)

    def agreed(self) -> bool:
        """Whether any process has received a signal; all of them ask together."""
        number = self.highest(signal.Signals[self.received] if self.received else 0)
        if number and not self.received:
            self.received = signal.Signals(number).name
        return bool(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and not LAUNCHED:
            _end_at_once(number, frame)  # torchrun sends one again, and kills if need be
        self.received = self.received or signal.Signals(number).name


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Handles SIGINT: prints one line, and ends this process and its workers."""
    kill_workers()
    line = "\n" * os.isatty(2) + f"{_program()}: error: interrupted\n"  # after a progress bar
    with suppress(OSError):
        os.write(2, b"" if SILENT else line.encode(errors="replace"))
    os._exit(INTERRUPTED)


def kill_workers() -> None:
    """Kills the workers; at exit multiprocessing would send SIGTERM, which they block, and wait."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class _Stream(io.FileIO):
    """Standard output or standard error; a write that fails ends no computation.

    What is printed to a log on a full disk, or to a terminal that was closed, is lost, with a
    warning. If standard output is closed, as with `train.py | head`, the program ends, a training
    after it is saved.
    """

    lost: ClassVar[set[int]] = set()  # descriptors
    stop: ClassVar[StopSignal | None] = None  # of a training

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() not in self.lost:
                self.lost.add(self.fileno())
                self._tell(error)
            return len(data)  # else it would be tried again, at the latest at exit

    def _tell(self, error: OSError) -> None:
        is_output = self.fileno() == 1
        if is_output and error.errno == errno.EPIPE:
            if self.stop is None:
                raise Fault("standard output was closed")
            self.stop.received = self.stop.received or OUTPUT_CLOSED
        elif len(self.lost) == 1:  # the other one is there to tell it
            name, other = ("output", sys.stderr) if is_output else ("error", sys.stdout)
            line = f"warning: standard {name}: {error.strerror}; what is printed to it is lost"
            print(line, file=other)


def _prepare_streams() -> None:
    """Makes prints succeed whatever their characters, and whether or not the streams exist."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell (2>&-), or pythonw
            stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115  to the end
        elif number and isinstance(stream, io.TextIOWrapper):
            file = getattr(stream.buffer, "raw", stream.buffer)
            if type(file) is io.FileIO and stream is getattr(sys, f"__{name}__"):
                raw = _Stream(stream.fileno(), "w", closefd=False)
                stream = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding)
            # Lines of both streams come into a log file in their order.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
