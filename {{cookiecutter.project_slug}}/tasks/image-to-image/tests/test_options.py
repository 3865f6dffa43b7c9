"""The options: config.txt, and those that exclude each other."""

from pathlib import Path

import pytest

import options
from engine.arguments import config_text


def test_a_config_is_read_back_as_it_was() -> None:
    words = ["--data=my images/#1 @home", "--lr=1e-05", "--no-residual", "--deterministic"]
    words += ["--crops=7", "--degrade=grey", "--no-side-by-side", "--losses=l1:3,perceptual"]
    opt = options.parse([*words, "--pool=3", "--no-flip"])
    Path("config.txt").write_text(config_text(opt, Path("config.txt")), encoding="utf-8")
    assert options.parse(["@config.txt"]) == opt


def test_copies_of_the_model_cannot_share_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(["--flip", "--pool=5", "--parallel=super"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--pool" in error
    for words in (["--pool=5", "--parallel=split"], ["--parallel=super"]):
        options.parse(["--flip", *words])
