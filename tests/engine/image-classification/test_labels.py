"""labels.csv: read as it is meant, or refused in one line with the number of its line."""

import codecs
import csv
import io
import os
import re
import shutil
import unicodedata
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Build, Train
from faults import die_at_step
from marks import slow_after
from needs import needs
from programs import last, refusal, resume, same_weights, train_refuses

import dataset
import options
import test
from engine.errors import BadInput

read_classes, read_table = needs("task.classes.read_classes"), needs("task.labels.read_table")
read_number = needs("task.labels.read_number")
needs("dataset.ClassFolders")
PLAIN = Namespace(group=None)
Rows = list[list[str]]


def rows_of(data: Path) -> Rows:
    """The header, and the images of a data set with the folder of each as its label."""
    paths = sorted(path.relative_to(data) for path in data.glob("*/*/*.png"))
    return [["file", "label"], *([path.as_posix(), path.parts[1]] for path in paths)]


def text_of(rows: Rows, delimiter: str = ",", lineterminator: str = "\n") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=lineterminator).writerows(rows)
    return text.getvalue()


def write(data: Path, content: str | bytes) -> Path:
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    (data / "labels.csv").write_bytes(content)
    return data


def cell(line: int, column: int, text: str) -> Callable[[Rows], str]:
    """A table with another text in one cell; lines count from 1."""

    def change(rows: Rows) -> str:
        rows[line - 1][column] = text
        return text_of(rows)

    return change


def more(name: str, *values: str) -> Callable[[Rows], str]:
    """A table with another column, whose values are repeated."""

    def change(rows: Rows) -> str:
        rows[0].append(name)
        for i, row in enumerate(rows[1:]):
            row.append(values[i % len(values)])
        return text_of(rows)

    return change


def lines(change: Callable[[list[str]], object]) -> Callable[[Rows], str]:
    """A table whose lines are changed."""

    def make(rows: Rows) -> str:
        found = text_of(rows).splitlines()
        change(found)
        return "\n".join(found) + "\n"

    return make


# What is done to a table of 36 images: 12 of test/ in lines 2 to 13, those of train/ after them;
# the line that is named, and what is said. All that may be wrong with a table is here or in READ.
REFUSED: dict[str, tuple[Callable[[Rows], str | bytes], int, str]] = {
    "empty": (lambda rows: "", 1, "no column file"),
    "the header alone": (lambda rows: "file,label\n", 1, "no row below the header"),
    "no header": (lambda rows: text_of(rows[1:]), 1, "no column file and no column label"),
    "another name of a column": (cell(1, 0, "filename"), 1, "'filename': rename it file"),
    "a capital": (cell(1, 1, "Label"), 1, "'Label': rename it label"),
    "a column misspelt": (more("spilt", "train"), 1, "'spilt': rename it split"),
    "a column in the plural": (more("weights", "1"), 1, "'weights': rename it weight"),
    "a column twice": (more("label", "disc"), 1, "two columns are called label"),
    "a separator in no quotes": (lines(lambda t: t.insert(4, "a,b.png,disc")), 5, "3 cells"),
    "a row cut off": (lines(lambda t: t.insert(4, "train/disc/0.png")), 5, "1 cells"),
    "a quote too many": (lines(lambda t: t.insert(4, '"a.png,disc')), 5, "is no CSV"),
    "latin-1": (lambda rows: cell(7, 1, "Löwe")(rows).encode("latin-1"), 7, "not in UTF-8"),
    "no text": (lambda rows: b"\x89PNG\r\n\0\0\0\1\xff\xfe\0\0" * 9, 1, "no text"),
    "a missing file": (cell(9, 0, "train/disc/77.png"), 9, "77.png: no such file"),
    "no file": (cell(9, 0, " "), 9, "no file"),
    "a folder": (cell(9, 0, "train/disc"), 9, "is a folder"),
    "no image": (cell(9, 0, "dataset.json"), 9, "is no image"),
    "another case": (cell(20, 0, "train/Disc/0.PNG"), 20, "is it train/disc/0.png?"),
    "without an ending": (cell(20, 0, "train/disc/0"), 20, "is it train/disc/0.png?"),
    "an absolute path": (cell(20, 0, "/data/train/disc/0.png"), 20, "is absolute"),
    "a path of Windows": (cell(20, 0, r"C:\images\0.png"), 20, "is absolute"),
    "a path that leads out": (cell(20, 0, "../0.png"), 20, "leads out of"),
    "two labels in two rows": (
        lines(lambda t: t.append("train/disc/0.png,rows")), 38, "has it with another label",
    ),
    "two spellings, two labels": (
        lines(lambda t: t.append("train/./disc//0.png,rows")), 38, "has it with another label",
    ),
    "no label": (cell(8, 1, ""), 8, "no label"),
    "NaN": (cell(8, 1, "nan"), 8, "stands for a missing value"),
    "an error of a spreadsheet": (cell(8, 1, "#N/A"), 8, "stands for a missing value"),
    "several labels": (cell(8, 1, "disc;rows"), 8, "several labels"),
    "a date": (cell(8, 1, "2024-03-05"), 8, "a date"),
    "a month": (cell(8, 1, "5-Mar"), 8, "a date"),
    "a split misspelt": (more("split", "train", "trian"), 3, "write one of train, val, test"),
    "another name of a split": (more("split", "train", "valid"), 3, "write val"),
    "no split": (more("split", "train", ""), 3, "no split"),
    "no group": (more("group", "a", ""), 3, "no group"),
    "a group in two splits": (more("group", *"abcde"), 14, "group c is in train, and in line 4"),
    "a decimal comma": (more("weight", "1", "1,5"), 3, "write a point, 1.5"),
    "a weight below 0": (more("weight", "1", "-1"), 3, "is below 0"),
    "an infinite weight": (more("weight", "1", "inf"), 3, "is no number"),
    "weights of 0": (more("weight", "0"), 14, "no image of train has a weight above 0"),
    "a class that train lacks": (cell(2, 1, "stars"), 2, "no row of train does"),
    "one class": (
        lambda rows: text_of([rows[0], *([row[0], "disc"] for row in rows[1:])]), 14, "only class",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tabled(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny data set, whose table alone is spoiled."""
    folder = tmp_path_factory.mktemp("tabled") / "data"
    shutil.copytree(images, folder, ignore=shutil.ignore_patterns(".cache"))
    (folder / "dataset.json").write_text("{}")
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_with_a_fault_is_refused_with_its_line(tabled: Path, case: str) -> None:
    spoil, line, told = REFUSED[case]
    write(tabled, spoil(rows_of(tabled)))
    with pytest.raises(BadInput, match=rf"labels\.csv: line {line}: .*{re.escape(told)}"):
        read_classes(tabled, PLAIN)


@pytest.mark.parametrize("case", slow_after(2, REFUSED))
def test_a_run_ends_in_that_line(
    tabled: Path, small: list[str], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, line, told = REFUSED[case]
    write(tabled, spoil(rows_of(tabled)))
    error = train_refuses(capsys, *small, f"--data={tabled}", "--run-dir=run")
    assert f"labels.csv: line {line}: " in error and told in error


def odd_names(data: Path) -> str:
    """Blanks, a comma, quotes and letters of any kind in names and labels."""
    for name, other in (("disc", 'disc, "round"'), ("rows", "Löwe 猫")):
        for path in data.glob(f"*/{name}"):
            path.rename(path.with_name(other))
    return text_of(rows_of(data))


# And what is read: the text of the table, which holds what rows_of has.
READ: dict[str, Callable[[Path], str | bytes]] = {
    "a byte order mark": lambda data: codecs.BOM_UTF8 + text_of(rows_of(data)).encode(),
    "semicolons": lambda data: text_of(rows_of(data), delimiter=";"),
    "tabs": lambda data: text_of(rows_of(data), delimiter="\t"),
    "UTF-16 with tabs": lambda data: text_of(rows_of(data), delimiter="\t").encode("utf-16"),
    "CRLF": lambda data: text_of(rows_of(data), lineterminator="\r\n"),
    "all in quotes": lambda data: "".join(f'"{a}","{b}"\n' for a, b in rows_of(data)),
    "commas and letters": odd_names,
    "blank lines": lambda data: "\n" + text_of(rows_of(data)) + "\n , \n\n",
    "no last line end": lambda data: text_of(rows_of(data)).rstrip("\n"),
    "blanks around": lambda data: text_of([[f" {a} ", f"\t{b} "] for a, b in rows_of(data)]),
    "backslashes": lambda data: text_of([[a.replace("/", "\\"), b] for a, b in rows_of(data)]),
    "other spellings": lambda data: text_of(
        [[a.replace("/", "/./"), b] if "/" in a else [a, b] for a, b in rows_of(data)]
    ),
    "a row twice": lambda data: text_of([*rows_of(data), rows_of(data)[-1]]),
    "rows in any order": lambda data: text_of([rows_of(data)[0], *rows_of(data)[:0:-1]]),
    "columns in another order": lambda data: text_of([[b, a] for a, b in rows_of(data)]),
    "a column more": lambda data: text_of(
        [[a, str(i), b] for i, (a, b) in enumerate(rows_of(data))]
    ),
    "a column without a name": lambda data: text_of(
        [[str(i) if i else "", a, b] for i, (a, b) in enumerate(rows_of(data))]
    ),
}


@pytest.mark.parametrize("case", READ)
def test_an_odd_table_is_read(spoiled: Path, case: str) -> None:
    write(spoiled, READ[case](spoiled))
    table = read_classes(spoiled, PLAIN)
    expected = {tuple(row) for row in rows_of(spoiled)[1:]}
    assert {(row.file, row.label) for row in table.rows} == expected
    assert len(table.rows) == len(expected)
    content = (spoiled / "labels.csv").read_bytes()
    if content.isascii() and "twice" not in case:
        physical = content.decode().replace("\r\n", "\n").split("\n")
        for row in table.rows:
            assert os.path.basename(row.file) in physical[row.line - 1]


def test_columns_of_labels_can_be_kept(spoiled: Path) -> None:
    """For tasks of other labels: a column for each, or numbers; their meaning is not known here."""
    rows = [[file, "01"[label == "disc"], "1.5"] for file, label in rows_of(spoiled)[1:]]
    write(spoiled, text_of([["file", "round", "height"], *rows]))
    table = read_table(spoiled, PLAIN, keep=True)
    assert table.others == ["round", "height"]
    assert [[row.file, *row.others] for row in table.rows] == rows
    assert read_number(table, 2, "height", table.rows[0].others[1]) == 1.5
    with pytest.raises(BadInput, match=r"line 2: height '1,5': is no number; write a point, 1.5"):
        read_number(table, 2, "height", "1,5")
    write(spoiled, text_of([["file", "round"], *(row[:2] for row in [*rows, [rows[0][0], "1"]])]))
    with pytest.raises(BadInput, match=r"line 38: .*: line 2 has it with another cell"):
        read_table(spoiled, PLAIN, keep=True)


def test_names_that_differ_by_their_unicode_form_are_named(spoiled: Path) -> None:
    name, other = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    shutil.copy(spoiled / "train/disc/0.png", spoiled / name)
    write(spoiled, text_of([*rows_of(spoiled), [other, "disc"]]))
    with pytest.raises(BadInput, match=f"line 38: .*is it {name}"):
        read_classes(spoiled, PLAIN)


def test_one_file_by_a_link_in_two_classes_is_refused(spoiled: Path) -> None:
    (spoiled / "link.png").symlink_to(spoiled / "train/disc/0.png")
    write(spoiled, text_of([*rows_of(spoiled), ["link.png", "rows"]]))
    with pytest.raises(BadInput, match=r"line 38: link.png is the file train/disc/0.png of line"):
        read_classes(spoiled, PLAIN)


@pytest.mark.parametrize("case", ["table.csv", "Labels.xlsx"])
def test_a_table_of_another_name_is_named(
    spoiled: Path, small: list[str], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    (spoiled / "train").rename(spoiled / "images")
    (spoiled / case).write_text("x")
    line = train_refuses(capsys, *small, f"--data={spoiled}")
    assert f"no folder train and no labels.csv; if {case} is the table, save it as" in line


# Runs.


def test_folders_and_a_table_in_any_order_give_the_same_bits(train: Train, spoiled: Path) -> None:
    (spoiled / "train" / "rows" / "deeper").mkdir()
    (spoiled / "train" / "rows" / "3.png").rename(spoiled / "train" / "rows" / "deeper" / "x.png")
    assert train("folders", f"--data={spoiled}") == 0
    write(spoiled, text_of([["file", "label"], ["train/rows/deeper/x.png", "rows"],
          *rows_of(spoiled)[:0:-1]]))  # fmt: skip
    assert train("table", f"--data={spoiled}") == 0
    assert same_weights(Path("folders"), Path("table"))
    opt, info = options.parse([f"--data={spoiled}"]), last(Path("table"))["info"]
    judged = [dataset.eval_set(opt, info, "test")]
    (spoiled / "labels.csv").unlink()
    judged.append(dataset.eval_set(opt, info, "test"))
    (one, labels), (other, expected) = ((each.names(), each.labels) for each in judged)
    assert one == other and labels.equal(expected) and len(one) == 12


def test_images_in_one_folder_and_splits_in_a_column(
    build: Build, train: Train, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All images lie together; the cache is in the folder of the data, which has its own name."""
    rows = rows_of(spoiled)
    (spoiled / "images").mkdir()
    for row in rows[1:]:
        name = row[0].replace("/", "-")
        (spoiled / row[0]).rename(spoiled / "images" / name)
        row += [["val", "train"][row[0].startswith("train")]]
        row[0] = f"images/{name}"
    for folder in ("train", "test"):
        shutil.rmtree(spoiled / folder)
    rows[0].append("split")
    write(spoiled, text_of([*rows[:-1]]))
    data = f"--data={spoiled}"
    parts = build(data)
    assert (len(parts.train_set), len(parts.val_set)) == (23, 12)
    assert not {*parts.train_set.names()} & {*parts.val_set.names()}
    assert (parts.train_set.root, parts.val_set.root) == (spoiled, spoiled)
    assert train("run", data) == 0
    said = capsys.readouterr()
    assert "best.pt --split val\n" in said.out, "no test images"
    assert (spoiled / ".cache").is_dir() and not (spoiled.parent / ".cache").exists()
    error = said.err
    unused = rows[-1][0]
    assert f"warning: {spoiled}: not used, as no row of labels.csv names them: {unused}\n" in error
    names = [line.split('"')[1] for line in Path("run/files.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(row[0] for row in rows[1:-1])
    line = refusal(capsys, test.main, "test.py", "--checkpoint=run", "--device=cpu")
    assert "labels.csv: no row is of the split test" in line and "--split val" in line


def test_the_table_wins_beside_folders(build: Build, spoiled: Path) -> None:
    rows = rows_of(spoiled)
    swap = {"disc": "rows", "rows": "disc", "columns": "columns"}
    write(spoiled, text_of([rows[0], *([file, swap[label]] for file, label in rows[1:])]))
    train_set = build(f"--data={spoiled}").train_set
    for name, label in zip(train_set.names(), train_set.labels.tolist(), strict=True):
        assert train_set.classes[label] == swap[name.partition("/")[0]]
    assert train_set.labels.tolist() == sorted(train_set.labels.tolist()), "in the order of classes"


def test_the_hash_is_of_the_path_without_the_folder_of_the_split(
    build: Build, spoiled: Path
) -> None:
    """So the same images are validated on, wherever others of the table lie."""
    before = set(build(f"--data={spoiled}", "--val-share=0.5").val_set.names())
    shutil.copy(spoiled / "train/disc/0.png", spoiled / "beside.png")
    write(spoiled, text_of([*rows_of(spoiled), ["beside.png", "disc"]]))
    after = set(build(f"--data={spoiled}", "--val-share=0.5").val_set.names())
    assert {f"train/{name}" for name in before} == after - {"beside.png"}


def test_a_table_that_was_edited_does_not_resume_in_silence(
    train: Train, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = f"--data={spoiled}", rows_of(spoiled)
    write(spoiled, text_of(rows))
    assert train("run", data) == 0
    write(spoiled, text_of([rows[0], *rows[:0:-1]], lineterminator="\r\n"))
    capsys.readouterr()
    assert resume(Path("run")) == 0
    assert "exact continuation" not in capsys.readouterr().err, "the same rows"
    i = next(i for i, row in enumerate(rows) if row == ["train/disc/4.png", "disc"])
    rows[i][1] = "rows"
    write(spoiled, text_of(rows))
    capsys.readouterr()
    assert resume(Path("run"), "--epochs=3") == 0
    error = capsys.readouterr().err
    assert "1 training image has another row in the table, train/disc/4.png" in error
    assert "other counts or statistics of the data" in error
    assert last(Path("run"))["n_iter"] > 0


# Groups.


def test_groups_of_a_table_stay_on_one_side(
    build: Build, spoiled: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(spoiled)
    rows[0].append("group")
    for row in rows[1:]:
        split, _, name = row[0].split("/")
        row.append(f"{split} {name[0]}")
    write(spoiled, text_of(rows))
    for fold in (None, "1/4", "4/4"):
        parts = build(f"--data={spoiled}", *([f"--fold={fold}"] if fold else []), "--batch-size=1")
        sides = [{*part.groups} for part in (parts.train_set, parts.val_set)]
        assert all(sides) and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 8
        assert fold is None or len(sides[1]) == 2
    line = train_refuses(capsys, *small, f"--data={spoiled}", "--group=(.)")
    assert line.endswith("has a column group; leave one of the two out\n")


def test_a_class_that_groups_leave_on_one_side_is_named(
    train: Train, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", f"--data={spoiled}", "--group=(columns|disc|rows)", "--balance") == 0
    error = capsys.readouterr().err
    assert "warning: no images of " in error and " to train on" in error
    assert " to validate on" in error and "Traceback" not in error


# Weights.


def weigh(data: Path) -> str:
    """The option of a data set that draws discs three times as often as columns, and rows never."""
    weights = {"columns": "1", "disc": "3", "rows": "0"}
    rows = [[file, label, weights.get(label, "weight")] for file, label in rows_of(data)]
    return f"--data={write(data, text_of(rows))}"


def test_images_are_drawn_by_their_weights(build: Build, spoiled: Path) -> None:
    parts = build(weigh(spoiled), "--epochs=40")
    with parts.train_loader.batches() as batches:
        labels = [label for _, labels in batches for label in labels.tolist()]
    assert len(labels) == 40 * (len(parts.train_set) // 4) * 4, "an epoch keeps its length"
    names = parts.train_set.names()
    discs, columns = (sum(word in name for name in names) for word in ("disc", "columns"))
    share = 3 * discs / (3 * discs + columns)
    assert abs(labels.count(1) / len(labels) - share) < 0.07 and 2 not in labels
    assert len({*parts.val_set.labels.tolist()}) == 3, "validation is not weighted"


@pytest.mark.slow
def test_a_weighted_run_is_exact_and_says_so(
    train: Train, spoiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [weigh(spoiled), "--epochs=4", "--save-every=1"]
    assert train("undisturbed", *words, "--cache") == 0
    assert "draws: as likely as the weights in labels.csv say" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        die_at_step(patch, 5)
        assert train("killed", *words, "--no-cache", "--workers=1") == 9
    assert resume(Path("killed"), "--workers=2") == 0
    assert same_weights(Path("killed"), Path("undisturbed"))


def test_weights_beside_balanced_draws_are_refused(
    spoiled: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    needs("--sample=balanced")
    line = train_refuses(capsys, *small, weigh(spoiled), "--sample=balanced")
    assert "--sample balanced: " in line and "labels.csv has weights; leave one" in line
