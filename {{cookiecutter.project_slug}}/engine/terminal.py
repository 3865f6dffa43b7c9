"""What the programs print: lines, which --quiet leaves out, and progress bars."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from engine.text import printable

LINE_EVERY = 60.0  # seconds between the lines of progress where stderr is no terminal
LINES = "{desc} {percentage:.0f}%, {n_fmt} of {total_fmt}, {remaining} left{postfix}"
T = TypeVar("T")
_quiet = False
_aside = False
_not_drawn: set[str] = set()


def be_quiet(quiet: bool, aside: bool = False) -> None:
    """Begins the output of a program.

    With `quiet`, only warnings, errors and the last line are printed. With `aside`, all is printed
    to stderr, since stdout gets what the program writes.
    """
    global _quiet, _aside
    _quiet, _aside = quiet, aside
    _not_drawn.clear()
    # Worker processes show no bars. tqdm's own lock would be one of all processes, for which
    # multiprocessing starts a process that complains about it after a program is interrupted.
    tqdm.set_lock(threading.RLock())


def say(text: str) -> None:
    """Prints text, above the bar if there is one, unless the program was told to be quiet.

    It may have several lines; a name in one of them that may hold a line break is made `printable`.
    """
    if not _quiet:
        lines = "\n".join(map(printable, text.split("\n")))
        tqdm.write(lines, file=sys.stderr if _aside else sys.stdout)


def conclude(text: str, command: str = "") -> None:
    """Prints the last line of a program, and unless it was told to be quiet what to do next."""
    after = f"; next:\n{printable(command)}" if command and not _quiet else ""
    print(printable(text) + after, file=sys.stderr if _aside else sys.stdout)


def warn(text: str) -> None:
    """Prints a warning, above the bar if there is one."""
    tqdm.write(f"warning: {printable(text)}", file=sys.stderr)


def attempt(draw: Callable[[], T], what: str) -> T | None:
    """What `draw` returns; None if it fails, with a warning the first time."""
    try:
        return draw()
    except Exception as error:
        if what not in _not_drawn:
            _not_drawn.add(what)
            warn(f"{what}: not drawn ({type(error).__name__}: {error})")
        return None


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 3 min 12 s, 2 h 5 min."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def bar(iterable: Iterable | None = None, disable: bool = False, **how: Any) -> tqdm:
    """A progress bar of tqdm on stderr, no wider than the terminal.

    Where stderr is no terminal, as in a log file, it prints lines instead: one a minute at first,
    then at longer and longer intervals, about 200 lines in a day. `how` is for tqdm.
    """
    if sys.stderr.isatty():
        how["dynamic_ncols"] = True
    else:
        how |= {"file": _Lines(sys.stderr), "bar_format": LINES, "miniters": 1}
        how |= {"mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "delay": LINE_EVERY}
    return tqdm(iterable, disable=disable or _quiet, **how)


def set_postfix(bar: tqdm, parts: list[str]) -> None:
    """Shows after the bar as many of the parts as fit into the line, each as a whole."""
    if bar.disable:
        return
    bar.set_postfix_str("", refresh=False)
    width = bar.format_dict["ncols"]  # None: lines in a file; 0: a terminal of unknown width
    room = math.inf if width is None else (width or 80) - len(str(bar)) - 4  # the time may grow
    while len(", ".join(parts)) > room and parts:
        parts = parts[:-1]
    bar.set_postfix_str(", ".join(parts), refresh=False)


def close(bar: tqdm) -> None:
    """Closes a bar and wipes its line to the last column: Ctrl-C may have left its ^C there."""
    shown = not bar.disable and sys.stderr.isatty()
    bar.close()
    if shown:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        sys.stderr.write(f"\r{'':{columns}}\r")


class _Lines:
    """Writes what tqdm prints as lines without carriage returns, at intervals that grow."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun, self.last = stream, time.monotonic(), 0.0

    def write(self, text: str) -> None:
        now = time.monotonic()
        if text.strip() and now - self.last >= (now - self.begun) / 50:
            self.last = now
            self.stream.write(f"{text.strip()}\n")

    def flush(self) -> None:
        self.stream.flush()
