"""The images that predict.py is given: lists in the encodings of other systems, folders."""

import io
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from engine.data.images import read_image
from engine.errors import BadInput
from engine.inference.predictions import ImageFiles

PLACES = ["a.png", "ä ö.png", "with blank.png "]


def load(path: str) -> Tensor:
    read_image(path)
    return torch.zeros(3, 1, 1, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def images() -> None:
    for name in ("a.png", "ä ö.png", "with blank.png ", "in/1.png", "in/2.gif"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(name, format="PNG")
    Path("in/notes.txt").write_text("")


def listed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return ImageFiles(["-"], load).files[:]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
def test_lists_of_any_system(monkeypatch: pytest.MonkeyPatch, encoding: str, end: str) -> None:
    assert listed(monkeypatch, (end.join(PLACES) + end * 2).encode(encoding)) == PLACES


def test_lists_ended_by_nul_with_blanks_and_with_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(monkeypatch, "\0".join([*PLACES, ""]).encode()) == PLACES
    assert listed(monkeypatch, b"a.png  \n\t\nin\n") == ["a.png", "in/1.png", "in/2.gif"]
    assert capsys.readouterr().err == "warning: in: not used: notes.txt\n"
    with pytest.raises(BadInput, match="standard input names no file"):
        listed(monkeypatch, b" \n\r\n")


def test_what_cannot_be_read_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty.png").write_bytes(b"")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"gone.png\nempty.png\na.png\n")))
    images = ImageFiles(["-"], load)
    readable = [bool(images[i][1]) for i in range(3)]
    assert readable == [False, False, True]
    gone, empty = images._problems(readable)
    assert gone == "gone.png: no such file"
    assert empty.startswith("empty.png: not readable as an image: empty;")
    with pytest.raises(BadInput, match=r"^gone\.png: no such file \(none of 2 images is\)"):
        images._problems([False, False])
    for name, reason in (("gone.png", "no such file or folder"), ("folder", "no image in")):
        Path("folder").mkdir(exist_ok=True)
        with pytest.raises(BadInput, match=f"^{name}: {reason}"):
            ImageFiles([name], load)
    os.mkfifo("pipe.png")
    with pytest.raises(BadInput, match=r"^pipe\.png: neither a file nor a folder"):
        ImageFiles(["pipe.png"], load)


def test_what_describes_a_folder_is_no_image_that_was_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.remove("in/notes.txt")
    for name in ("dataset.json", "README.md", "LICENSE"):
        Path("in", name).write_text("")
    assert len(ImageFiles(["in"], load)) == 2
    assert capsys.readouterr().err == ""


def test_marks_of_lists_that_were_joined_and_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "\ufeffa.png\r\n\ufeff\"ä ö.png\"\r\n  in/1.png\r\n\x1a".encode()
    assert listed(monkeypatch, content) == ["a.png", "ä ö.png", "in/1.png"]
    Path("数.png").write_bytes(Path("a.png").read_bytes())
    assert listed(monkeypatch, "数.png\n".encode("utf-16-le")) == ["数.png"]
    name = "数据图像数据图像数据图像"  # hardly a zero, and no UTF-8
    Path(name).write_bytes(Path("a.png").read_bytes())
    assert listed(monkeypatch, f"{name}\n".encode("utf-16-be")) == [name]


@pytest.mark.parametrize(
    ("name", "encoding", "found"),
    [
        ("café.png", "latin-1", "cp1252"),
        ("café.png", "cp437", "cp437"),
        ("数.png", "gb18030", "gb18030"),
        ("gone é.png", "latin-1", "byte 0xe9 at 6"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\0"])
def test_a_list_in_another_encoding_is_refused_with_the_line(
    monkeypatch: pytest.MonkeyPatch, name: str, encoding: str, found: str, end: str
) -> None:
    if "gone" not in name:
        Path(name).write_bytes(Path("a.png").read_bytes())
    content = f"a.png{end}{name}{end}".encode(encoding)
    told = rf"^-: line 2 of standard input is not in UTF-8 \({found}\); save it in UTF-8$"
    with pytest.raises(BadInput, match=told):
        listed(monkeypatch, content)
    raw = os.fsdecode(name.encode(encoding))  # of an older system
    Path(raw).write_bytes(Path("a.png").read_bytes())
    assert listed(monkeypatch, content) == ["a.png", raw]
