"""labels.csv, a table of the images and what is known of each; what its labels mean is not here.

    file,label,group
    images/1.png,cat,p7
    images/2.png,dog,p9

The columns split (train, val, test), group and weight may be missing. Whatever is wrong with a
table is a line that names the line of the file; the header is line 1 if nothing is above it.
"""

import csv
import hashlib
import io
import math
import os
import posixpath
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from engine import terminal
from engine.data.files import (
    ENDINGS,
    SPLITS,
    Listing,
    collecting,
    is_image,
    linked_images,
    list_images,
    nearly,
    reading_failed,
)
from engine.data.splits import find_groups
from engine.data.stored import more_endings
from engine.errors import BadInput, shorten
from engine.text import decode, encoding_problem
from task.names import simple

TABLE = "labels.csv"
REQUIRED, OPTIONAL = ("file", "label"), ("split", "group", "weight")
COLUMNS = (*REQUIRED, *OPTIONAL)
SEPARATORS = ",;\t"
# What else the columns are called, in small letters; a table with such a column is refused.
NEARLY = {
    "file": ("filename", "file_name", "filepath", "path", "image", "images", "image_id", "id"),
    "label": ("class", "classes", "class_name", "category", "target", "y"),
    "split": ("set", "subset", "partition", "fold"),
}


class Row(NamedTuple):
    """A row of the table, without blanks around what stands in it."""

    line: int  # where it begins in the file, counted from 1
    file: str  # its path relative to the folder of the table, as the listing of that has it
    label: str  # "" if there is no such column
    split: str
    group: str  # "" if there are no groups
    weight: float
    others: tuple[str, ...]  # the other columns, if they were asked for

    @property
    def place(self) -> tuple[str, str, str]:
        """What sorts rows as list_images does with files, wherever the splits lie."""
        path = below_split(self.file)
        return os.path.dirname(path) + "/" * ("/" in path), path, self.file

    def digest(self) -> str:
        """Of all that training depends on besides the image and its split."""
        told = repr((self.label, self.group, self.weight, self.others))
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def below_split(file: str) -> str:
    """A path below the folder of a table without that of its split, if it is in one."""
    first, slash, rest = file.partition("/")
    return rest if slash and first in SPLITS else file


class Table:
    """The rows of a labels.csv.

    Attributes:
        folder: That of the table, which paths are relative to.
        rows: In the order of the file.
        columns: Of the header, those that have a meaning.
        others: The other columns.
        grouped: Whether its rows have groups, by the column or by `--group`.
        unnamed: Files in the folder that no row names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / TABLE
        self.rows: list[Row] = []
        self.columns: list[str] = []
        self.others: list[str] = []
        self.grouped = False
        self.unnamed: list[str] = []

    def fault(self, line: int, text: str) -> BadInput:
        """The error for a line of the file."""
        return BadInput(f"{self.path}: line {line}: {text}")

    def has(self, split: str) -> bool:
        return any(row.split == split for row in self.rows)

    def of(self, split: str) -> list[Row]:
        """The rows of a split, sorted as the files of a folder are."""
        return sorted((row for row in self.rows if row.split == split), key=lambda row: row.place)

    def root(self, rows: list[Row]) -> Path:
        """What the images of some rows lie in: DIR/train, DIR/val or DIR/test, or DIR itself."""
        firsts = {row.file.partition("/")[0] for row in rows if "/" in row.file}
        inside = len(firsts) == 1 and firsts < {*SPLITS} and all("/" in row.file for row in rows)
        return self.folder / firsts.pop() if inside else self.folder

    def warn(self) -> None:
        """Names, in one line each, columns and files that are not used."""
        if self.others:
            terminal.warn(f"{self.path}: columns not used: {shorten(self.others, 3)}")
        if self.unnamed:
            names = shorten(self.unnamed, 3)
            terminal.warn(f"{self.folder}: not used, as no row of {TABLE} names them: {names}")


def read_table(
    folder: Path, opt: Namespace, faults: list[str] | None = None, keep: bool = False
) -> Table | None:
    """The table in a folder; None if there is none.

    Args:
        folder: That of `--data`.
        opt: The options, for `--group` and `--images`.
        faults: Gets the faults of rows; without it the first one is raised.
        keep: Whether rows have the cells of other columns, and a column label is not needed.

    Raises:
        BadInput: The file cannot be read as a table, a row has a fault, or two of them do not go
            together.
    """
    table = Table(folder)
    try:
        content = table.path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        _look_for_others(folder)
        return None
    except OSError as error:
        raise reading_failed(table.path, error) from None
    text = _decoded(table, content)
    records = _records(table, text, _separator(text))
    line, header = next(records, (1, []))
    places = _read_header(table, line, header, keep)
    more = more_endings(getattr(opt, "images", None))
    reader = _Reader(table, places, list_images(folder, more), keep)
    for line, cells in records:
        with nullcontext() if faults is None else collecting(faults):
            reader.add(line, cells)
    if not table.rows and not faults:
        raise table.fault(line, "no row below the header; write one for each image")
    _check_weights(table)
    _find_groups(table, opt)
    _check_links(table, reader.found)
    table.unnamed = _unnamed(table, reader.found)
    return table


def _unnamed(table: Table, found: Listing) -> list[str]:
    """What lies in the folder and no row names, images first."""
    named = {row.file for row in table.rows}
    others = [name for name in found.unused if name not in (TABLE, "dataset.json")]
    return [path for path in found.images if path not in named] + others


def _look_for_others(folder: Path) -> None:
    """Raises BadInput if the only thing in a folder that may tell the labels has another name."""
    if (folder / "train").exists() or not folder.is_dir():
        return
    ends = (".csv", ".tsv", ".xlsx", ".xls", ".ods")
    if near := [name for name in sorted(os.listdir(folder)) if name.lower().endswith(ends)]:
        raise BadInput(
            f"{folder}: no folder train and no {TABLE}; if {near[0]} is the table, save it as "
            f"{TABLE}, in UTF-8"
        )


def _decoded(table: Table, content: bytes) -> str:
    """The text of the file, without a byte order mark; UTF-16, as spreadsheets write it, too."""
    text = decode(content)
    for bad in ("\0", "\ufffd"):
        if bad in text:
            line = text.count("\n", 0, text.index(bad)) + 1
            raise table.fault(line, f"is no text in UTF-8 ({bad!r}); save it in UTF-8")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        problem = encoding_problem(text.split("\n")[line - 1])
        raise table.fault(line, problem) from None
    return text


def _separator(text: str) -> str:
    """The one with which the header has a column file, else the one that makes most columns."""
    header = next((line for line in re.split(r"[\r\n]+", text) if line.strip()), "")
    cells = {sign: [cell.strip(' "') for cell in header.split(sign)] for sign in SEPARATORS}
    return max(SEPARATORS, key=lambda sign: ("file" in cells[sign], len(cells[sign])))


def _records(table: Table, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The line at which each record begins, and its cells; lines without any are left out."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise table.fault(line, f"is no CSV ({error}); look for a quote too many") from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _read_header(table: Table, line: int, header: list[str], keep: bool) -> dict[str, int]:
    """The place of each column, by its name."""
    names = [cell.strip() for cell in header]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise table.fault(line, f"two columns are called {twice[0]}; keep one")
    table.columns = [name for name in names if name in COLUMNS]
    others = [(name, i) for i, name in enumerate(names) if name not in COLUMNS]
    table.others = [name or f"column {i + 1}" for name, i in others]
    missing = [name for name in REQUIRED if name not in names and not (keep and name == "label")]
    for name in table.others:
        for column in (name for name in COLUMNS if name not in names):
            if (column in OPTIONAL or column in missing) and _is_nearly(name, column):
                remedy = f"rename it {column} if it is that, else give it another name"
                raise table.fault(line, f"column {name!r}: {remedy}")
    if missing:
        there = shorten([*map(repr, names)], 3) or "an empty file"
        raise table.fault(
            line,
            f"no column {' and no column '.join(missing)} in {there}; the first line names the "
            "columns, such as file,label",
        )
    return {name: i for i, name in enumerate(names)}


def _is_nearly(name: str, column: str) -> bool:
    small = name.lower()
    misspelt = small[:1] == column[0] and get_close_matches(small, [column], 1, 0.8)  # no height
    return small in NEARLY.get(column, ()) or bool(misspelt)


class _Reader:
    """Makes rows of cells, and compares each with those before."""

    def __init__(self, table: Table, places: dict[str, int], found: Listing, keep: bool) -> None:
        self.table, self.places, self.found = table, places, found
        self.images = set(found.images)
        self.others = [i for name, i in places.items() if keep and name not in COLUMNS]
        self.before: dict[str, Row] = {}  # by the file
        self._alike: dict[str, str] | None = None

    def add(self, line: int, cells: list[str]) -> None:
        """Adds a row to the table; BadInput if it has a fault."""
        if len(cells) != len(self.places):
            raise self.table.fault(
                line,
                f"{len(cells)} cells, and the header has {len(self.places)}; put a cell that has "
                "the separator in it in quotes",
            )
        row = self._read(line, cells)
        other = self.before.setdefault(row.file, row)
        if other is row:
            self.table.rows.append(row)
        elif other[2:] != row[2:]:
            what = next(n for n in row._fields[2:] if getattr(row, n) != getattr(other, n))
            what = "cell" if what == "others" else what
            raise self.table.fault(
                line, f"{row.file}: line {other.line} has it with another {what}; keep one of them"
            )

    def _read(self, line: int, cells: list[str]) -> Row:
        given = {name: cells[i].strip() for name, i in self.places.items() if name in COLUMNS}
        raw = cells[self.places["file"]]
        file = raw if raw in self.images else self._find(line, given["file"])
        split = given.get("split", "") or self._split_of(line, file)
        if split not in SPLITS:
            hint = nearly(split)
            remedy = f"write {hint}" if hint else f"write one of {', '.join(SPLITS)}"
            raise self.table.fault(line, f"split {split!r}: {remedy}")
        if "group" in given and not given["group"]:
            remedy = "give an image that belongs to none one of its own"
            raise self.table.fault(line, f"{file}: no group; {remedy}")
        weight = 1.0
        if "weight" in given:
            weight = read_number(self.table, line, "weight", given["weight"])
            if weight < 0:
                raise self.table.fault(line, f"weight {weight:g}: is below 0; 0 is never drawn")
        label, group = given.get("label", ""), given.get("group", "")
        others = tuple(cells[i].strip() for i in self.others)
        return Row(line, file, label, split, group, weight, others)

    def _split_of(self, line: int, file: str) -> str:
        """The split of a row that names none: the first folder of its file, or train."""
        first, slash, _ = file.partition("/")
        if "split" in self.table.columns:
            raise self.table.fault(line, f"{file}: no split; write one of {', '.join(SPLITS)}")
        if not slash or first in SPLITS:
            return first if slash else "train"
        if near := nearly(first):
            raise self.table.fault(
                line, f"{file}: rename the folder {near} if it is that, or add a column split"
            )
        return "train"

    def _find(self, line: int, name: str) -> str:
        """The path that a cell means, as the listing has it."""
        if name in self.images:
            return name
        folder, windows = self.table.folder, PureWindowsPath(name)
        if not name:
            raise self.table.fault(line, "no file; name one, or delete the row")
        if name.startswith(("/", "\\", "~")) or windows.drive:
            raise self.table.fault(line, f"{name}: is absolute; write it from {folder} on")
        plain = posixpath.normpath(name.replace("\\", "/"))
        if plain.startswith("../"):
            raise self.table.fault(line, f"{name}: leads out of {folder}; move the file into it")
        if plain in self.images:
            return plain
        if alike := self._alike_to(plain):
            raise self.table.fault(line, f"{name}: no such file; is it {alike}? Write it like that")
        if os.path.isdir(folder / plain):
            raise self.table.fault(line, f"{name}: is a folder; name each image")
        if not os.path.isfile(folder / plain):
            raise self.table.fault(line, f"{name}: no such file in {folder}; correct or delete it")
        if not is_image(plain):
            ends = ", ".join(ENDINGS)
            raise self.table.fault(line, f"{name}: is no image; files that count end in {ends}")
        return plain  # by a link to a folder that was met before

    def _alike_to(self, path: str) -> str:
        """A file that a wrong path may mean: by case or Unicode form, its end, or no ending."""
        if self._alike is None:
            self._alike = {}
            for image in self.found.images:
                names = (image, os.path.splitext(image)[0], below_split(image))
                for name in (*names, os.path.basename(image)):
                    self._alike.setdefault(simple(name), image)
        return self._alike.get(simple(path), "")


def read_number(table: Table, line: int, what: str, text: str) -> float:
    """A finite number in a cell.

    Raises:
        BadInput: It is none.
    """
    plain = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text, re.ASCII)
    if plain and math.isfinite(value := float(text)):
        return value
    remedy = "write a number, as 0.5"
    if re.fullmatch(r"[-+]?\d+,\d+", text):
        remedy = f"write a point, {text.replace(',', '.')}"
    raise table.fault(line, f"{what} {text!r}: is no number; {remedy}")


def _find_groups(table: Table, opt: Namespace) -> None:
    """Gives the rows the groups of `--group`; checks that each is in one split alone."""
    if "group" in table.columns and opt.group is not None:
        raise BadInput(f"--group: {table.path} has a column group; leave one of the two out")
    groups = find_groups(opt, (row.file for row in table.rows))
    if groups is not None:
        pairs = zip(table.rows, groups, strict=True)
        table.rows = [row._replace(group=group) for row, group in pairs]
    table.grouped = groups is not None or "group" in table.columns
    first: dict[str, Row] = {}
    for row in table.rows if table.grouped else ():
        other = first.setdefault(row.group, row)
        if other.split != row.split:
            raise table.fault(
                row.line,
                f"the group {row.group} is in {row.split}, and in line {other.line} in "
                f"{other.split}; move all of it to one",
            )


def _check_weights(table: Table) -> None:
    of_train = [row for row in table.rows if row.split == "train"]
    if of_train and not any(row.weight for row in of_train):
        raise table.fault(of_train[0].line, "no image of train has a weight above 0; give some one")


def _check_links(table: Table, found: Listing) -> None:
    """Refuses one file under two names with two labels; warns of one that is in two splits."""
    rows = {os.path.join(found.root, row.file): row for row in table.rows}
    for pair in linked_images(found):
        one, other = (rows.get(path) for path in pair)
        if one is None or other is None:
            continue
        one, other = sorted((one, other))
        same = f"{other.file} is the file {one.file} of line {one.line}"
        if (one.label, one.others) != (other.label, other.others):
            raise table.fault(other.line, f"{same}, by a link, with another label; keep one")
        if one.split != other.split:
            terminal.warn(f"{table.path}: line {other.line}: {same}: one image in two splits")
