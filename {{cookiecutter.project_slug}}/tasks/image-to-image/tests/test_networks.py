"""From options to networks: what is made, and which option changes which network."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import example
import pytest
import torch
from conftest import Train
from needs import needs
from ours import convolutions, save_vgg19, usual_generator
from programs import same_weights

import options
from engine.errors import BadInput
from networks import make_networks


def opt(*words: str, size: int = 32) -> Namespace:
    """The options of a small network; the losses are those of `words`."""
    losses = [] if any(word.startswith("--losses") for word in words) else ["--losses=l1"]
    settings = options.parse([*example.SMALL, "--pool=2", *losses, *words])
    settings.img_size = size
    return settings


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vgg19(tmp_path_factory.mktemp("vgg") / "vgg19.pth")


def test_only_what_the_losses_need_is_made(vgg_file: Path) -> None:
    made = make_networks(opt())
    assert (made.discriminator, made.pool, made.vgg) == (None, None, None)
    made = make_networks(opt("--losses=l1,adversarial,features,perceptual", "--vgg-weights=none"))
    assert made.vgg is None
    assert make_networks(opt("--vgg-weights=not_looked_at.pth")).vgg is None
    assert made.discriminator is not None
    assert made.pool is not None
    assert made.pool.images.shape == (2, 6, 32, 32)
    made = make_networks(opt("--losses=l1,perceptual", f"--vgg-weights={vgg_file}"))
    assert (made.discriminator, made.pool) == (None, None)
    assert made.vgg is not None


def test_convolutions_have_a_bias_where_no_norm_would_take_it_away() -> None:
    usual_generator()
    biases = {"none": 1 + 1 + 2 + 1 + 1, "instance": 1, "batch": 1}
    for norm, count in biases.items():
        words = [f"--norm={norm}", "--n-downsampling=1", "--blocks=1"]
        network = make_networks(opt(*words)).generator
        assert sum(conv.bias is not None for conv in convolutions(network)) == count


GENERATOR = ["--width=6", "--n-downsampling=1", "--blocks=2", "--padding=reflect"]
GENERATOR += ["--norm=instance", "--dropout=0.5", "--no-residual"]
DISCRIMINATOR = ["--d-width=6", "--d-layers=3", "--d-scales=1", "--d-norm=none", "--pool=3"]


def test_dropout_is_random_in_a_run(train: Train, finished: Path) -> None:
    usual_generator()
    assert train("run", "--dropout=0.3") == 0
    assert not same_weights(Path("run"), finished)


@pytest.mark.parametrize("word", GENERATOR)
def test_every_option_of_the_generator_reaches_it(word: str) -> None:
    usual_generator()
    needs(word.partition("=")[0].replace("--no-residual", "--residual"))

    def facts(*words: str) -> list[Any]:
        made = make_networks(opt(*words)).generator
        return [repr(made), getattr(made, "residual", None)]

    assert facts() == facts() != facts(word)


@pytest.mark.parametrize("word", DISCRIMINATOR)
def test_every_option_of_the_discriminator_reaches_it(word: str) -> None:
    needs(word.partition("=")[0])

    def facts(*words: str) -> list[Any]:
        made = make_networks(opt("--losses=adversarial", *words))
        assert made.pool is not None
        return [repr(made.discriminator), made.pool.images.shape]

    assert facts() == facts() != facts(word)


@pytest.mark.parametrize(
    ("size", "words"),
    [(64, ["--d-layers=3", "--d-scales=3"]), (4, ["--d-layers=1", "--d-scales=1"])],
)
def test_the_smallest_images_are_named(size: int, words: list[str]) -> None:
    needs("networks.Discriminator")
    made = make_networks(opt("--losses=adversarial", *words, size=size))
    assert made.discriminator is not None
    made.discriminator(torch.rand(2, 6, size, size))
    with pytest.raises(BadInput, match=f"^--img-size {size - 1}: must be at least {size}"):
        make_networks(opt("--losses=adversarial", *words, size=size - 1))


def test_images_too_small_for_vgg_are_named(vgg_file: Path) -> None:
    words = ["--losses=perceptual", f"--vgg-weights={vgg_file}"]
    with pytest.raises(BadInput, match=r"^--img-size 15: must be at least 16"):
        make_networks(opt(*words, size=15))
    made = make_networks(opt(*words, size=16))
    assert made.vgg is not None
    assert len(made.vgg(torch.rand(1, 3, 16, 16))) == 3
