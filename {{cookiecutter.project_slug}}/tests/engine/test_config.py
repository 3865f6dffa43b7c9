"""What the options of every task have in common: config.txt, help."""

import json
from pathlib import Path

import pytest

import options
from engine.arguments import config_text


def parse(*words: str) -> dict:
    return vars(options.parse([*words, "--flip"]))


def test_every_option_is_in_the_config_but_the_folder_of_the_run() -> None:
    opt = options.parse(["--flip", "--run-dir=runs/a"])
    text = config_text(opt, Path("runs/a/config.txt"))
    flags = {line.split("=")[0].replace("--no-", "--") for line in text.splitlines()[1:]}
    expected = {"--" + name.replace("_", "-") for name in vars(opt)}
    chosen = {"--" + name.replace("_", "-") for name, value in vars(opt).items() if value is None}
    assert flags == expected - {"--run-dir", "--resume", "--quiet"} - chosen
    assert {"--workers", "--cache"} <= chosen, "by the program, unless they are given"
    opt = options.parse(["--flip", "--workers=0", "--no-cache"])
    given = set(config_text(opt, Path("config.txt")).splitlines())
    assert {"--workers=0", "--no-cache"} <= given
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
