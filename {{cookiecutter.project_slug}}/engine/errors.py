"""How a program ends: exit statuses, errors of one line, signals.

Every program imports this module first. From then on Ctrl-C ends even the imports in one line.
"""

import errno
import gc
import io
import multiprocessing
import os
import re
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

DONE, FAULT, BAD_INPUT, STOPPED = 0, 1, 2, 75  # the exit statuses of every program
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PROJECT = Path(__file__).resolve().parents[1]
LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ  # by torchrun, as one of several processes
OUTPUT_CLOSED = "SIGPIPE"  # what others get who print to nobody; Python gets an error
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
        "out of memory: lower --batch-size (a larger --accumulate keeps the step as it was), or "
        "use smaller images",
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
        "out, or replace the layer (padding with a reflection by padding with zeros)",
        BAD_INPUT,
    ),
    (
        r"no kernel image is available",
        "this build of PyTorch has no code for this GPU; install the build that docs/build.md "
        "names for it, or use --device cpu",
        FAULT,
    ),
)


def run_program(main: Callable[[], int]) -> None:
    """Runs `main` and exits with its status. Errors that a user can act on end in one line."""
    if IS_PROGRAM:
        gc.freeze()  # saves most of a second at exit, and memory in the workers
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored in background jobs
        signal.signal(signal.SIGINT, _interrupt)
    _prepare_streams()
    try:
        status = main()
    except BadInput as error:
        status = _complain(error, BAD_INPUT)
    except Fault as error:
        status = _complain(error, FAULT)
    except OSError as error:
        status = _complain(_reason(error), FAULT)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a file being written is finished
        status = _complain("interrupted", INTERRUPTED)
    except (MemoryError, RuntimeError, ValueError) as error:
        if not (remedy := _remedy(error)):
            _let_speak()
            raise
        status = _complain(*remedy)
    except Exception:
        _let_speak()
        raise
    if IS_PROGRAM:  # whatever holds up the end of the interpreter, a signal ends it
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    _leave(status)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handles the first SIGINT as Python does; the second one does not wait for open files."""
    signal.signal(signal.SIGINT, end_at_once)
    raise KeyboardInterrupt


def among_processes(may_speak: Callable[[], str | None]) -> None:
    """One of several processes: an error may be that of another one, which has reported it.

    Args:
        may_speak: Returns what an error begins with; None if another process has reported one.
    """
    global _may_speak, _leave
    _may_speak, _leave = may_speak, _leave_others


def _leave_others(status: int) -> NoReturn:
    """Ends this process; after an error without the parts of the end that wait for the others."""
    if status not in (DONE, STOPPED):
        kill_workers()
        for stream in (sys.stdout, sys.stderr, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(status)
    for number in STOP_SIGNALS:  # torchrun sends one to those that leave after the first
        signal.signal(number, signal.SIG_IGN)
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


def _reason(error: OSError) -> str:
    """What an error of the system says in a line, after the place if it is in the owner's code."""
    place, text = "", str(error)
    in_worker = "Original Traceback" in text  # with which a DataLoader worker sends its error
    frames = re.findall(r'File "(.+)", line (\d+)', text) if in_worker else [
        (frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
    ]  # fmt: skip
    ours = [
        (Path(name).relative_to(PROJECT), number)
        for name, number in frames
        if Path(name).is_relative_to(PROJECT) and "site-packages" not in Path(name).parts
    ]
    if ours and ours[-1][0].parts[0] not in ("engine", "task"):
        place = f"{ours[-1][0].as_posix()}:{ours[-1][1]}: "
    if in_worker:
        return f"{place}{text.strip().splitlines()[-1].partition(': ')[2]}"
    return f"{place}{error.filename or 'a file'}: {error.strerror or text}"


def _complain(problem: object, status: int) -> int:
    if (prefix := _may_speak()) is not None:
        stream = sys.__stderr__ if SILENT else sys.stderr
        if os.environ.get("PROJECT_TRACEBACK") and sys.exc_info()[0] is not None:
            traceback.print_exc(file=stream)
        print(f"{_program()}: error: {prefix}{problem}", file=stream)
    return status


def _let_speak() -> None:
    """Lets a process that was silent print the traceback of its error, if it is the first one."""
    if _may_speak() is not None and SILENT:
        sys.stderr = sys.__stderr__


def _program() -> str:
    return Path(sys.argv[0]).name


class StopSignal:
    """Whether a signal has asked the run to stop: true in the process that received it.

    The signals are SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2. A signal is only noted,
    so that the step under way can be finished and saved. A SIGINT after that ends the process at
    once, without saving: an exception raised while a lock is held could make the run hang.

    Args:
        highest: Returns the highest of the numbers that all processes give it.
    """

    def __init__(self, highest: Callable[[int], int] = lambda number: number) -> None:
        global _when_closed
        self.highest = highest
        self.received = ""  # the name of the first signal
        if hasattr(signal, OUTPUT_CLOSED):
            _when_closed = self._note_closed_output
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

    def _note_closed_output(self) -> None:
        self.received = self.received or OUTPUT_CLOSED

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and not LAUNCHED:
            end_at_once(number, frame)  # torchrun sends one again, and kills if need be
        self.received = self.received or signal.Signals(number).name
        if number == getattr(signal, "SIGHUP", None):
            _leave_closed_terminal()


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Handles SIGINT by one line and the end of this process and its workers."""
    kill_workers()
    line_break = b"\n" * os.isatty(2)  # after the progress bar
    if not SILENT:
        with suppress(OSError):
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


class _Stream(io.FileIO):
    """Standard output or standard error, whose failure does not end what is computed.

    What is printed to a log on a full disk is lost, with a warning. Standard output that nobody
    reads any more, as with `train.py | head`, ends a program, and a training once it is saved.
    """

    lost: ClassVar[set[int]] = set()  # descriptors

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._lose(self.fileno(), error)
            return len(data)  # else it would be tried again, at the latest at exit

    def _lose(self, stream: int, error: OSError) -> None:
        if stream in self.lost:
            return
        self.lost.add(stream)
        if stream == 1 and error.errno == errno.EPIPE:
            _when_closed()
        elif len(self.lost) == 1:  # the other one is there to tell it
            name, other = ("output", sys.stderr) if stream == 1 else ("error", sys.stdout)
            line = f"warning: standard {name}: {error.strerror}; what is printed to it is lost"
            print(line, file=other)


def _prepare_streams() -> None:
    """Lets what is printed never fail by its characters, nor for want of a stream."""
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


def _end_without_output() -> None:
    raise Fault("standard output was closed")


def _occupy_descriptors() -> None:
    """Opens those of 0, 1 and 2 that are closed; else the next file opened would get the prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free


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


def _silence() -> bool:
    """Sends what this process prints to nowhere unless it is the first; errors find their way."""
    silent = LAUNCHED and os.environ["RANK"] != "0"
    if silent:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  to the end of the process
    return silent


_occupy_descriptors()
IS_PROGRAM = _watch_imports()
SILENT = _silence()
_leave: Callable[[int], NoReturn] = sys.exit
_when_closed: Callable[[], None] = _end_without_output
_may_speak: Callable[[], str | None] = lambda: None if SILENT else ""  # noqa: E731
