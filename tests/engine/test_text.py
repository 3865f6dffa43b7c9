"""Names of any kind in pictures, on the terminal and in TensorBoard's files."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import Train
from matplotlib.font_manager import fontManager
from programs import points

from engine import terminal, text
from engine.errors import BadInput, shorten
from engine.report.grids import captioned_grid, draw_counts
from engine.report.page import element
from engine.text import drawable, font_families, font_file, own_font, printable
from model import Model

NAMES = [
    *("$", "$$", "$$$", r"$\foo$", "US$ and CA$", "$5_$10^", "a\nb", "a\r\nb", "a\x85b"),
    *("a\u2028b", "a\u2029b", "a\x1cb", "a\x1fb", "\x00", "\x1b[31mred\x1b[0m", "\x9b31m"),
    *("\udcff", "\ud83d", "\u202egpj.exe", "\u2066x\u2069", "\u200f", "\ufeffx", "\uffff", "猫"),
    *(
        "한국어",
        "שלום",
        "مرحبا",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "e\u0301",
        "a  b",
        "a\u3000b",
        "",
        " ",
    ),
    *("%s {0} {{x}}", "<b>&amp;"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_is_one_line_and_can_be_drawn(name: str) -> None:
    plain, told = drawable(name), printable(name)
    for line in (plain, told):
        assert len(line.splitlines()) <= 1 and not any(0xD800 <= ord(c) < 0xE000 for c in line)
        assert not set(line) & set("\x1b\x9b\x00\r\u202e\u2066\u200f\ufeff")
        line.encode("utf-8")
    assert len(plain) == len(name) and drawable(plain) == printable(plain) == plain
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert captioned_grid(image, [name], 1).dtype == torch.uint8
    draw_counts(torch.ones(2, 2, dtype=torch.int64), [name, "other"], name or "title")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing")
        plt.figure(figsize=(1, 1))
        plt.xticks([0], [plain], parse_math=False)
        plt.title(plain, parse_math=False)
        plt.gcf().canvas.draw()
        plt.close()


def test_what_can_be_read_stays_as_it_is() -> None:
    for name in ("a  b", "US$ and CA$", "猫", "👩\u200d👩\u200d👧", "a, 'b' \"c\"", "e\u0301"):
        assert drawable(name) == printable(name) == name
    assert printable("a\u3000b\xa0c") == "a\u3000b\xa0c"
    assert printable("a\n\x1b[31m\udcff") == r"a\n\x1b[31m\udcff"
    assert drawable("a\n\x1b[31m\udcff") == "a \ufffd[31m\ufffd"


def test_a_font_of_the_system_draws_what_that_of_matplotlib_lacks(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    picture = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(text, "_found", {})
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    assert font_file("猫 (99%)") == own_font() == font_file("cat → dog…")
    boxes = captioned_grid(picture, ["猫 (99%)"], 1)
    write_font(Path("cats.ttf"), "A猫 (9%)")
    fontManager.addfont("cats.ttf")
    text._found.clear()
    assert font_file("猫 (99%)") == "cats.ttf" and font_file("мир") == own_font()
    assert font_families(["a", "猫"]) == ["DejaVu Sans", "Cats"]
    assert not captioned_grid(picture, ["猫 (99%)"], 1).equal(boxes)
    assert not recwarn.list


def write_font(path: Path, letters: str) -> None:
    """Writes a font in which each letter is a square."""
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    for step, place in enumerate(((0, 0), (0, 700), (700, 700), (700, 0))):
        (pen.lineTo if step else pen.moveTo)(place)
    pen.closePath()
    names = [".notdef", *(f"glyph{i}" for i in range(len(letters)))]
    font = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict(zip(map(ord, letters), names[1:], strict=True)))
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(path)


def test_the_terminal_gets_no_escape_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31ma  b\r\u202e.jpg"
    terminal.be_quiet(False)
    terminal.say(f"one {name}\ntwo")
    terminal.warn(f"{name}\nmore")
    terminal.conclude(name, "command")
    shown = r"\x1b[31ma  b\r\u202e.jpg"
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"one {shown}", "two", f"{shown}; next:", "command"]
    assert err == f"warning: {shown}\\nmore\n"
    assert str(BadInput(f"{name}: damaged")) == f"{shown}: damaged"
    assert shorten([name, "b"]) == f"{shown}, b"
    assert element("p", name) == "<p>\ufffd[31ma  b \ufffd.jpg</p>"


def test_a_picture_that_fails_ends_no_training(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*batch: object) -> None:
        raise ValueError("raqm_layout() failed")

    for name in ("image_grid", "figures"):
        monkeypatch.setattr(Model, name, fail)
    assert train("run", "--epochs=3") == 0
    lines = capsys.readouterr().err.splitlines()
    found = [line for line in lines if line.startswith("warning: ")]
    assert len(found) == len(set(found)) == 3, "the first batch, and two of each validation"
    assert all("not drawn (ValueError: raqm_layout() failed)" in line for line in found)
    assert len([p for p in points(Path("run")) if p["split"] == "val"]) == 3


def test_an_image_of_a_wrong_shape_ends_no_training(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("image_grid", "figures"):
        value = torch.zeros(7) if name == "image_grid" else {"x": torch.zeros(1, 2, 3, 4, 5)}
        monkeypatch.setattr(Model, name, lambda *batch, value=value: value)
    assert train("run", "--epochs=1") == 0
    assert "warning: image batch: not drawn" in capsys.readouterr().err


def test_names_that_are_no_text_go_into_the_events_of_tensorboard(
    train: Train, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options as text and for HPARAMS, and the tags of metrics."""
    Path("im\udcff\x1bages").symlink_to(images)
    compute = Model.compute_metrics
    more = {"a\udcffb": 0.5, "two\nlines": 0.5}
    monkeypatch.setattr(Model, "compute_metrics", lambda *all: {**compute(*all), **more})
    assert train("run", "--epochs=1", "--data=im\udcff\x1bages") == 0
    (events,) = Path("run").glob("events.*")
    content = events.read_bytes()
    assert content.count("im\ufffd\ufffdages".encode()) == 2, "config.txt, and HPARAMS"
    assert "val/a\ufffdb".encode() in content and b"val/two lines" in content
