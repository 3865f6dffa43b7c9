"""What programs write over: what they wrote themselves, and no input or file of another program."""

import json
import os
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import BadInput
from engine.report.outputs import Output, report_folder


def mine(path: Path) -> bool:
    return path.read_bytes().startswith(b"mine")


def output(name: str) -> Output:
    return Output(name, "a table of this test", mine)


def others() -> list[str]:
    """Files that are none of the program's, under names of all kinds."""
    Image.new("RGB", (4, 4)).save("photo.jpg")
    Path("best.pt").write_bytes(b"PK\x03\x04 weights")
    Path("notes.csv").write_text("a,b\n")
    Path("folder.csv").mkdir()
    os.link("photo.jpg", "hard.csv")
    Path("soft.csv").symlink_to("best.pt")
    Path("to_folder").symlink_to("folder.csv")
    names = ["photo.jpg", "best.pt", "notes.csv", "folder.csv", "hard.csv", "soft.csv", "to_folder"]
    return [*names, "new.jpg", "new/", "no/such/folder.csv", ".", "", "notes.csv/x"]


def test_what_is_not_the_programs_is_refused() -> None:
    for name in others():
        with pytest.raises(BadInput, match=r"--out .*name another"):
            output(name)
    assert Path("notes.csv").read_text() == "a,b\n" and Path("best.pt").read_bytes()[:2] == b"PK"


def test_a_name_promises_what_is_written() -> None:
    for name in ("table.csv.gz", "table.xlsx", "TABLE.ZIP"):
        with pytest.raises(BadInput, match=rf"--out {name}: .* is plain text; name a file without"):
            output(name)
        assert not Path(name).exists()


def test_what_is_the_programs_is_replaced_as_a_whole() -> None:
    Path("old.csv").write_text("mine\n" * 1000)
    Path("empty.csv").touch()  # as mktemp makes it
    Path("link.csv").symlink_to("old.csv")
    Path("nowhere.csv").symlink_to("made.csv")
    for name in ("empty.csv", "link.csv", "nowhere.csv", "new.csv"):
        output(name).write(name.encode())
        assert Path(name).read_text() == name
    assert Path("link.csv").is_symlink() and Path("old.csv").read_text() == "link.csv"


def redirected(flags: int, name: str, act: Callable[[], None]) -> bytes:
    """Calls `act` while standard output is a file that holds a line; returns its content."""
    Path("all.csv").write_text("before\n")
    file, kept = os.open("all.csv", os.O_WRONLY | flags), os.dup(1)
    if not flags:
        os.lseek(file, 0, os.SEEK_END)
    os.dup2(file, 1)
    try:
        act()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(file)
    return Path("all.csv").read_bytes()


@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "all.csv"])
def test_standard_output_is_written_to_and_not_replaced(
    name: str, flags: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """As with `--out /dev/stdout >> all.csv`."""

    def act() -> None:
        out = output(name)
        assert out.is_stdout
        out.write(b"rows\n")
        os.write(1, b"more\n")

    assert redirected(flags, name, act) == b"before\nrows\nmore\n"


def test_pipes_devices_and_open_files_are_written_to() -> None:
    os.mkfifo("pipe")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(Path("pipe").read_bytes()))
    reader.start()
    output("pipe").write(b"rows")
    reader.join()
    assert found == [b"rows"] and Path("pipe").is_fifo()
    output("/dev/null").write(b"rows")
    file = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b"kept ")
    output(f"/dev/fd/{file}").write(b"rows")
    os.close(file)
    assert Path("log").read_bytes() == b"kept rows"
    with pytest.raises(OSError, match="No space") as error:
        output("/dev/full").write(b"rows")
    assert error.value.filename == "/dev/full"


# The folder of a report.


def folder(data: str = "", split: str = "test", report: str | None = None, digest: str = "") -> str:
    """The folder of a report of run/ that was trained on own/digits; it gets a metrics.json."""
    opt = Namespace(checkpoint="run/checkpoints/best.pt", data=data or None, split=split)
    opt.report = report
    digest = digest or data or "own/digits"
    found = report_folder(opt, "own/digits", digest)
    judged = {"folder": str(Path(data or "own/digits").resolve()), "split": split, "digest": digest}
    Path(found, "metrics.json").write_text(json.dumps({"images": 3, "data": judged}))
    return found.as_posix()


def test_data_sets_of_one_name_have_reports_of_their_own() -> None:
    assert folder() == folder("own/digits") == folder(str(Path("own/digits").resolve()))
    assert folder() == "run/report" and folder(split="val") == "run/report-val"
    assert folder("b/digits") == folder("./b/digits/") == "run/report-digits"
    assert folder("c/digits") == folder("c/digits") == "run/report-c-digits"
    assert folder("x/c/digits") == "run/report-x-c-digits"
    assert folder("b/digits", "val") == "run/report-digits-val"
    assert folder("/") == "run/report-root"
    assert folder("val") == f"run/report-{Path.cwd().name}-val", "report-val is of another split"
    assert folder("moved/digits", digest="./b/digits/") == "run/report-digits", "the same images"


def test_a_report_named_is_replaced_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert folder(report="there/x") == folder(report="there/x") == "there/x"
    assert capsys.readouterr().err == ""
    folder("b/digits", report="there/x")
    assert "replaces the report on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["photos", "file", "run", "."])
def test_a_folder_of_other_things_gets_no_report(name: str) -> None:
    Path("photos").mkdir()
    Path("run").mkdir()
    for file in ("photos/1.jpg", "photos/metrics.json", "file", "run/config.txt"):
        Path(file).write_text('{"loss": 1}')
    with pytest.raises(BadInput, match="name another"):
        folder(report=name)
    assert not Path("photos/index.html").exists()
    Path("run/report").mkdir()
    Path("run/report/batch-000000001.png").touch()
    assert folder() == "run/report", "an image of the training is none of them"
