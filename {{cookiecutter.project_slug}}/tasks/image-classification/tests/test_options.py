"""The options: defaults that follow from others, config.txt, help."""

from pathlib import Path

import pytest
from needs import needs

import networks
import options
from engine.arguments import config_text


def test_a_config_is_read_back_as_it_was() -> None:
    words = ["--data=my images/#1 @home", "--lr=1e-05", "--no-compile", "--deterministic"]
    opt = options.parse([*words, "--network=resnet18", "--patience=3", "--no-flip"])
    Path("config.txt").write_text(config_text(opt, Path("config.txt")), encoding="utf-8")
    assert options.parse(["@config.txt"]) == opt


def test_images_are_as_large_as_the_network_wants() -> None:
    needs("networks.preset_of")

    def size(*words: str) -> int:
        return options.parse([*words, "--flip"]).img_size

    assert size(f"--network={networks.NETWORKS[0]}") == 32
    assert size("--network=resnet18") == 224
    assert size("--network=resnet18", "--img-size=64") == 64


def test_the_help_lists_own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "NETWORKS", (*networks.NETWORKS, "mine"))
    known = ", ".join(networks.NETWORKS)
    text = " ".join(options.make_parser().format_help().split())
    assert f"{known}, mine, a name from torchvision, or timm:NAME" in text


def test_the_built_in_digits_are_not_mirrored() -> None:
    needs("tools.digits.unpack_digits")
    assert options.parse(["--data=data/digits"]).flip is False
