"""What the options of every task have in common: config.txt, help."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Train
from programs import last, refusal, resume, status

import export
import options
import predict
import test
import train as program
from engine.arguments import Parser, config_text
from model import Model


def parse(*words: str) -> dict:
    return vars(options.parse([*words, "--flip"]))


def test_every_option_is_in_the_config_but_the_folder_of_the_run() -> None:
    opt = options.parse(["--flip", "--run-dir=runs/a"])
    text = config_text(opt, Path("runs/a/config.txt"))
    flags = {line.split("=")[0].replace("--no-", "--") for line in text.splitlines()[1:]}
    expected = {"--" + name.replace("_", "-") for name in vars(opt)}
    chosen = {"--" + name.replace("_", "-") for name, value in vars(opt).items() if value is None}
    assert flags == expected - {"--run-dir", "--resume", "--quiet"} - chosen
    assert {"--workers"} <= chosen, "by the program, unless they are given"
    opt = options.parse(["--flip", "--workers=0", "--no-cache"])
    given = set(config_text(opt, Path("config.txt")).splitlines())
    assert {"--workers=0", "--cache=off"} <= given
    assert text.startswith("#")
    assert "python train.py @runs/a/config.txt" in text


def test_words_after_a_config_change_it() -> None:
    Path("config.txt").write_text("# a comment\n\n--lr=0.5\n--epochs=3\n")
    opt = parse("@config.txt", "--epochs=4")
    assert (opt["lr"], opt["epochs"]) == (0.5, 4)


@pytest.mark.parametrize(("says", "flips"), [({}, True), ({"flip": False}, False)])
def test_the_data_set_says_whether_mirroring_is_allowed(says: dict, flips: bool) -> None:
    Path("dataset.json").write_text(json.dumps(says))
    assert options.parse(["--data=."]).flip is flips
    assert options.parse(["--data=.", "--flip"]).flip is True
    assert options.parse(["--data=.", "--no-flip"]).flip is False


def test_help_shows_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in parse():
        assert "--" + name.replace("_", "-") in text
    assert "(default: 3)" in text
    assert "default: None" not in text


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that adds an option of the owner to options.py."""
    make_parser = options.make_parser

    def add(*name: str, **how: Any) -> None:
        def make() -> Parser:
            parser = make_parser()
            parser.add_argument(*name, **how)
            return parser

        monkeypatch.setattr(options, "make_parser", make)

    return add


@pytest.mark.parametrize(
    ("how", "words", "value"),
    [
        ({"action": "store_true"}, [], False),
        ({"action": "store_true"}, ["--own"], True),
        ({"type": Path}, ["--own=a b/c"], Path("a b/c")),
        ({"type": Path, "default": Path("x")}, [], Path("x")),
        ({"nargs": "+", "type": int}, ["--own", "1", "2"], [1, 2]),
        ({"nargs": "*", "default": []}, [], []),
        ({"required": True}, ["--own=#1"], "#1"),
        ({"choices": ["a", "b"], "default": "b"}, [], "b"),
        ({"type": float}, [], None),
    ],
)
def test_an_own_option_survives_a_resume_and_the_other_programs(
    add: Callable[..., None],
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    how: dict,
    words: list[str],
    value: Any,
) -> None:
    """In whatever way of argparse it is added."""
    add("--own", **how)
    seen: list[Any] = []
    build = Model.__init__

    def note(self: Model, opt: Any, info: Any) -> None:
        seen.append(opt.own)
        build(self, opt, info)

    monkeypatch.setattr(Model, "__init__", note)
    # Drawing is most of what test.py takes, and other tests have it.
    monkeypatch.setattr(test, "write_report", lambda *parts: None, raising=False)
    assert train("run", "--epochs=1", *words) == 0
    assert resume(Path("run"), "--epochs=2") == 0
    assert train("again", f"@{Path('run/config.txt')}") == 0
    for main, name in ((test.main, "test.py"), (export.main, "export.py")):
        more = ["--format=safetensors"] if name == "export.py" else ["--split=val"]
        assert status(main, name, "--checkpoint=run", *more) == 0
    assert seen == [value] * 5
    assert last(Path("again"))["args"].keys() == last(Path("run"))["args"].keys()


@pytest.mark.parametrize(
    "how",
    [
        {"type": complex},
        {"type": lambda text: text.split(","), "default": ["a", "b"]},
        {"action": "append", "default": ["a"]},
        {"nargs": "+", "type": Path, "default": [Path("a")]},
        {"dest": "another", "default": "x"},
        {"dest": "plain", "action": "store_false"},
        {"default": "two\nlines"},
    ],
)
def test_an_own_option_that_could_not_be_read_back_is_refused_at_the_start(
    add: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    small: list[str],
    how: dict,
) -> None:
    add("--own", **how)
    given = ["--own=1j"] if how.get("type") is complex else []
    error = refusal(capsys, program.main, "train.py", *small, "--run-dir=run", *given)
    assert "options.py: " in error
    assert not Path("run").exists()


def test_options_that_a_checkpoint_does_not_know_have_their_defaults(
    add: Callable[..., None], finished: Path, tmp_path: Path, images: Path
) -> None:
    """An exported file does not know them either."""
    onnx = tmp_path / "x.onnx"
    words = [f"--checkpoint={finished}", "--format=onnx", f"--out={onnx}"]
    assert status(export.main, "export.py", *words) == 0
    add("--own", default=3)
    opt = options.make_parser().read_back(last(finished)["args"])
    assert opt.own == 3
    for checkpoint in (finished, onnx):
        assert status(predict.main, "predict.py", f"--checkpoint={checkpoint}", str(images)) == 0
