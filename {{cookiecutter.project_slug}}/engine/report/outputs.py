"""What programs write: never in the place of an input, or of another program's file."""

import csv
import io
import os
import re
import stat
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from engine.checkpoint import naming, write_atomically
from engine.data.files import is_image
from engine.errors import BadInput, shorten
from engine.report.records import read_judged, read_metrics, run_folder
from engine.terminal import warn

# Of files that no program here writes.
PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".xlsx", ".xls", ".ods", ".parquet")
MADE_BY_TRAINING = "batch-*.png"  # in the folder of a report


class Output:
    """The file that `--out` names, which is replaced as a whole; or a stream, which is written to.

    Streams are `-`, which is standard output, and what is no regular file, such as a pipe.

    Args:
        name: The file.
        what: What the program writes, for messages.
        is_own: Whether a file that is there was written by the program, and may be replaced.

    Attributes:
        is_stdout: Whether it is standard output, which then gets nothing else.

    Raises:
        BadInput: It cannot be a file, or is one of another kind, such as an input.
    """

    def __init__(self, name: str, what: str, is_own: Callable[[Path], bool]) -> None:
        self.name, self.descriptor, path = name, _descriptor(name), Path(name)
        self.path = path.resolve() if path.is_symlink() else path  # a link stays one
        self.is_stdout = self.descriptor == 1
        kind = self.path.stat().st_mode if self.path.exists() else stat.S_IFREG
        self.is_stream = self.descriptor is not None or stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)
        if self.is_stream:
            return
        if name.endswith(os.sep) or not self.path.parent.is_dir() or not stat.S_ISREG(kind):
            raise BadInput(f"--out {name}: not a file in a folder that exists; name another")
        if is_image(self.path):
            raise BadInput(f"--out {name}: is the name of an image, and gets {what}; name another")
        if name.lower().endswith(PACKED):
            ending = self.path.suffix
            raise BadInput(f"--out {name}: {what} is plain text; name a file without {ending}")
        if self.path.exists() and self.path.stat().st_size and not is_own(self.path):
            raise BadInput(f"--out {name}: is there and is not {what}; name another file")

    def write(self, content: bytes) -> None:
        """Writes it as a whole."""
        if not self.is_stream:
            return write_atomically(self.path, lambda file: file.write(content))
        sys.stdout.flush()
        is_open = self.descriptor is not None
        with naming(Path("standard output") if is_open else self.path):
            target = self.path if self.descriptor is None else os.dup(self.descriptor)
            with open(target, "wb") as file:
                file.write(content)


def csv_content(rows: Iterable[Sequence[str]]) -> bytes:
    """A table as CSV; names of files may be any bytes."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return os.fsencode(text.getvalue())


def _descriptor(name: str) -> int | None:
    """The open file that a name stands for: `-`, /dev/stdout, or where stdout is redirected to."""
    if name == "-":
        return 1
    numbered = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", name)
    for number in (1, 2, *(map(int, numbered.groups()) if numbered else ())):
        with suppress(OSError):  # it is not open, or there is no such file
            if os.path.samestat(os.stat(name), os.fstat(number)):
                return number
    return None


def report_folder(opt: Namespace, trained_on: str, digest: str) -> Path:
    """Makes the folder of a report: the one named, or report/ in that of the run.

    Other data and another split than test have a folder of their own there, report-NAME-SPLIT. The
    name is as much of the end of the path as tells it from that of other data. A checkpoint that
    was moved out of its run folder gets its report beside it.

    Args:
        opt: The options of test.py.
        trained_on: `--data` of the training.
        digest: Of the images.

    Raises:
        BadInput: The folder holds other things.
    """
    data, run = Path(opt.data or trained_on).resolve(), run_folder(opt.checkpoint)
    if opt.report:
        folder = Path(opt.report)
        if (folder.parent / "checkpoints").is_dir() and folder.parent.resolve() != run.resolve():
            raise BadInput(f"--report {folder}: is that of another run; name another folder")
    else:
        split = [opt.split] * (opt.split != "test")
        least = 0 if data == Path(trained_on).resolve() else 1
        parts = data.parts[1:] or ("root",)  # of /, as in containers
        for count in range(least, len(parts) + 1):
            name = "-".join(["report", *parts[len(parts) - count :], *split])
            folder, judged = run / name, read_judged(run / name)
            same = judged.get("folder") == str(data) or judged.get("digest") == digest
            if not judged or (same and judged.get("split") == opt.split):
                break
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--report {folder}: is no folder; name another")
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_others(folder)
    before = read_judged(folder)
    if before.get("digest", digest) != digest and before.get("folder") != str(data):
        warn(f"{folder}: replaces the report on {before.get('folder')} ({before.get('split')})")
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _refuse_others(folder: Path) -> None:
    made = set(folder.glob(MADE_BY_TRAINING))
    others = [path.name for path in sorted(folder.iterdir()) if path not in made]
    if others and "images" not in read_metrics(folder):
        more = f"holds {shorten(others, 3)}, and no report; name another folder by --report"
        raise BadInput(f"{folder}: {more}")
