"""The options: defaults that follow from others, config.txt, help."""

from pathlib import Path

import options
from engine.arguments import config_text


def parse(*words: str) -> dict:
    return vars(options.parse([*words, "--flip"]))


def test_a_config_is_read_back_as_it_was() -> None:
    words = ["--data=my images/#1 @home", "--lr=1e-05", "--no-balance", "--deterministic"]
    opt = options.parse([*words, "--network=resnet18", "--patience=3", "--no-flip"])
    Path("config.txt").write_text(config_text(opt, Path("config.txt")), encoding="utf-8")
    assert options.parse(["@config.txt"]) == opt


def test_images_are_as_large_as_the_network_wants() -> None:
    assert parse()["img_size"] == 32
    assert parse("--network=resnet18")["img_size"] == 224
    assert parse("--network=resnet18", "--img-size=64")["img_size"] == 64


def test_the_built_in_digits_are_not_mirrored() -> None:
    assert options.parse([]).flip is False
