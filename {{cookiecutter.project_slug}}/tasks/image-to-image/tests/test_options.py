"""The options: config.txt, and those that exclude each other."""

from pathlib import Path

import pytest
from needs import needs

import options
from engine.arguments import config_text
from losses import LOSSES


@pytest.mark.parametrize(
    "more", [[], ["--no-residual"], ["--degrade=grey"], ["--turn", "--unshuffle=2"]], ids=" ".join
)
def test_a_config_is_read_back_as_it_was(more: list[str]) -> None:
    for word in more:
        needs(word.replace("--no-", "--"))
    words = ["--data=my images/#1 @home", "--lr=1e-05", "--deterministic", "--no-cache", *more]
    words += ["--crops=7", "--no-side-by-side", "--losses=l1:3,perceptual", "--pool=3", "--no-flip"]
    opt = options.parse(words)
    Path("config.txt").write_text(config_text(opt, Path("config.txt")), encoding="utf-8")
    assert options.parse(["@config.txt"]) == opt


def test_copies_of_the_model_cannot_share_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    needs("--pool")
    with pytest.raises(SystemExit) as ended:
        options.parse(["--flip", "--pool=5", "--parallel=super"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--pool" in error
    for words in (["--pool=5", "--parallel=split"], ["--parallel=super"]):
        options.parse(["--flip", *words])


@pytest.mark.parametrize("number", ["0", "5", "2.5"])
def test_blocks_of_pixels_have_a_whole_size(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("--unshuffle")
    with pytest.raises(SystemExit) as ended:
        options.parse(["--flip", f"--unshuffle={number}"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--unshuffle" in error


def test_all_losses_have_a_name_in_the_help() -> None:
    text = options.make_parser().format_help()
    assert all(name in text for name in LOSSES)
