"""Options as people write them: files of options by hand or by an editor, empty values, names."""

import os
from pathlib import Path

import pytest
from programs import refusal, train_refuses

import options
import train
from engine.errors import BadInput

LINES = "# mine\n--epochs=3\n--seed=7\n"


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.replace("\n", "\r\n").encode(),
        LINES.encode("utf-16"),
        LINES.encode("utf-16-le"),
        LINES.encode("utf-32-be"),
        "# für alle\n--epochs=3\n--seed=7\n".encode("latin-1"),
        b"--epochs 3\n--seed   7  \n",
        b"  --epochs=3\n\t--seed 7\n",
        b"--epochs\n3\n\n  # seven\n--seed '7'\n",
        b"--epochs=3\n--seed=7",
    ],
    ids=[
        *("plain", "BOM", "CRLF", "UTF-16", "without its mark", "UTF-32", "a comment in latin-1"),
        *("blanks between", "before", "below", "no last line end"),
    ],
)
def test_a_file_of_options_is_read_as_it_is_meant(content: bytes) -> None:
    Path("mine.txt").write_bytes(content)
    opt = options.parse(["@mine.txt", "--flip"])
    assert (opt.epochs, opt.seed) == (3, 7)


def test_blanks_belong_to_a_value_also_when_it_is_read_back() -> None:
    Path("mine.txt").write_text("--data=my  images \n--monitor 'a  b'\n")
    opt = options.parse(["@mine.txt", "--flip"])
    assert (opt.data, opt.monitor) == ("my  images ", "a  b")
    odd = "a\u2028b\x1cc  #d"
    opt = options.parse([f"--data={odd}", "--flip"])
    assert options.make_parser().read_back(vars(opt)).data == odd


def test_a_config_of_other_images_does_not_mirror_in_silence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("dataset.json").write_text('{"flip": false}')
    Path("config.txt").write_text("--flip\n--data=elsewhere\n")
    for words, flips in (["@config.txt"], True), (["--no-flip"], False), ([], False):
        assert options.parse([*words, "--data=."]).flip is flips
        told = capsys.readouterr().err
        expected = "warning: --flip is obeyed, though dataset.json says the opposite\n"
        assert told == (expected if flips else "")
    for meant in ("--flip", "--resume"):
        assert options.parse(["@config.txt", "--data=.", meant, "--run-dir=run"]).flip
        assert "--flip" not in capsys.readouterr().err
    assert options.parse(["@config.txt"]).flip, "without a dataset.json"
    assert not capsys.readouterr().err


def test_a_resume_without_its_config_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run-dir=run", "--resume", "--no-flip", "--epochs=2"]
    assert options.parse(words).epochs == 2 and not capsys.readouterr().err, "no run yet"
    Path("run/checkpoints").mkdir(parents=True)
    options.parse(words)
    text = "run/config.txt: no such file; options that are not given have their defaults"
    assert text in capsys.readouterr().err
    Path("run/config.txt").write_text("--seed=3\n")
    assert options.parse(words).seed == 3 and not capsys.readouterr().err


def test_a_choice_of_a_checkpoint_that_is_gone_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.make_parser().read_back({"schedule": "gone"})
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "--schedule: invalid choice: 'gone'" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--epochs=3 # three\n", "--epochs: '3 # three' is not a whole number"),
        ("--epochs 3 --seed 7\n", "--epochs: '3 --seed 7' is not a whole number"),
        ("epochs=3\n", "unrecognized arguments: epochs=3; options, which begin with --, were read"),
        ("--epoch 3\n", "did you mean --epochs?"),
        ("--epochs\n\n", "--epochs: is empty"),
        ("--data=\n", "--data: is empty"),
        ("--data \n", "--data: is empty"),
        ("@mine.txt\n", "names itself"),
    ],
)
def test_what_is_not_meant_so_is_told(
    capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    Path("mine.txt").write_text(text)
    line = train_refuses(capsys, "@mine.txt")
    assert told in line.replace("argument ", "")


@pytest.mark.parametrize("name", ["run-dir", "weights", "data", "cache", "monitor", "network"])
@pytest.mark.parametrize("form", [["--{}", ""], ["--{}="], ["--{}", "  "]], ids=str)
def test_an_empty_value_is_refused(
    capsys: pytest.CaptureFixture[str], name: str, form: list[str]
) -> None:
    """Most often a variable of a job script that is not set: it must not count as not given."""
    if f"--{name}" not in options.make_parser()._option_string_actions:
        pytest.skip("no such option")
    line = refusal(capsys, train.main, "train.py", *(word.format(name) for word in form))
    assert f"--{name}: is empty" in line


def test_a_default_may_be_empty() -> None:
    parser = options.make_parser()
    parser.add_argument("--note", default="")
    assert parser.parse_args(["--note", ""]).note == ""
    with pytest.raises(SystemExit):
        parser.parse_args(["--note", "--data", ""])


def test_messages_keep_names_as_they_are() -> None:
    for name in ("a  b.jpg", " a.jpg", "a\u00a0 b.jpg"):
        assert str(BadInput(f"{name}: damaged")) == f"{name}: damaged"
    assert str(BadInput("a\tb.jpg: is\nodd")) == r"a\tb.jpg: is\nodd"


@pytest.mark.parametrize("line", ["--data=né", "--data né", "--monitor=é", "\u2013epochs=3"])
def test_a_line_in_another_encoding_is_refused(
    capsys: pytest.CaptureFixture[str], line: str
) -> None:
    Path("mine.txt").write_bytes(f"--seed=7\n{line}\n".encode("cp1252"))
    told = train_refuses(capsys, "@mine.txt")
    assert "mine.txt: line 2 is not in UTF-8 (byte 0x" in told
    Path("né").mkdir()
    if "data" in line:
        assert "mine.txt: line 2 is not in UTF-8 (cp1252)" in train_refuses(capsys, "@mine.txt")
        Path(os.fsdecode("né".encode("cp1252"))).mkdir()  # of an older system
        assert options.parse(["@mine.txt", "--flip"]).data == os.fsdecode("né".encode("cp1252"))
