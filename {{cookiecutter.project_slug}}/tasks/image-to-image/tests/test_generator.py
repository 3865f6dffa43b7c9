"""The generator: sizes, ranges, borders."""

import itertools
from typing import Any

import pytest
import torch
from needs import needs
from torch import nn

from layers import NORMS, PADDINGS, Padding

Generator = needs("networks.Generator")


def small(*channels: Any, **given: Any) -> Any:
    return Generator(*channels, **{"width": 4, "blocks": 1, **given})


def last_layer(network: Any) -> nn.Conv2d:
    layer = network.layers[-1]
    assert isinstance(layer, nn.Conv2d)
    return layer


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (8, 8), (13, 9), (17, 30)])
@pytest.mark.parametrize("n_downsampling", [0, 1, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_an_image_keeps_its_size(
    height: int, width: int, n_downsampling: int, training: bool
) -> None:
    network = small(n_downsampling=n_downsampling).train(training)
    images = torch.rand(2, 3, height, width) * 2 - 1
    assert network(images).shape == images.shape


@pytest.mark.parametrize(("padding", "norm"), list(itertools.product(PADDINGS, NORMS)))
@pytest.mark.parametrize("n_downsampling", [0, 2])
def test_any_padding_and_norm_takes_any_size(
    padding: Padding, norm: str, n_downsampling: int
) -> None:
    given = {"padding": padding, "norm": norm, "dropout": 0.5, "bias": False}
    network = small(n_downsampling=n_downsampling, **given)
    for size in (1, 5, 10):
        y = network(torch.rand(2, 3, size, size))
        assert y.shape == (2, 3, size, size)
        y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("residual", [False, True])
def test_other_numbers_of_channels(residual: bool) -> None:
    channels = (2, 2) if residual else (1, 5)
    network = small(*channels, residual=residual)
    assert network(torch.rand(2, channels[0], 9, 9)).shape == (2, channels[1], 9, 9)


@pytest.mark.parametrize("residual", [False, True])
def test_evaluation_ends_in_the_range_of_images_and_training_keeps_the_gradient(
    residual: bool,
) -> None:
    network = small(residual=residual)
    bias = last_layer(network).bias
    assert bias is not None
    nn.init.constant_(bias, 5.0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    outside = network(images)
    assert outside.min() > 1
    outside.mean().backward()
    assert bias.grad is not None
    assert bias.grad.abs().min() > 0
    network.eval()
    assert network(images).equal(outside.clamp(-1, 1))


def test_a_residual_generator_begins_near_its_input() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    near, far = (Generator(residual=residual)(images) - images for residual in (True, False))
    assert near.square().mean() < far.square().mean() / 50


def test_residual_adds_the_input() -> None:
    network = small(residual=True, n_downsampling=1)
    for parameter in last_layer(network).parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(2, 3, 7, 9) * 2 - 1
    assert network(images).equal(images)
    network.residual = False
    assert network(images).equal(torch.zeros_like(images))


@pytest.mark.parametrize("n_downsampling", [0, 1, 2])
def test_what_is_missing_at_the_border_does_not_move_the_image(n_downsampling: int) -> None:
    """A larger image with the same upper left corner gives the same there, but for the border."""
    network = small(n_downsampling=n_downsampling).eval()
    images = torch.rand(1, 3, 61, 63) * 2 - 1
    whole, part = network(images), network(images[..., :50, :53])
    assert (whole[..., :8, :8] - part[..., :8, :8]).abs().max() < 1e-5
    assert (whole[..., :50, :53] - part).abs().max() > 1e-5  # a network of few layers sees less


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_images_of_a_batch_do_not_affect_each_other(norm: str) -> None:
    network, images = small(norm=norm), torch.rand(4, 3, 32, 32)
    assert network(images)[1:3].allclose(network(images[1:3]), atol=1e-5)


def test_dropout_and_bias_reach_the_residual_blocks() -> None:
    network = Generator(dropout=0.5, bias=False, blocks=2, width=4)
    assert sum(isinstance(part, nn.Dropout) for part in network.modules()) == 2
    assert not [name for name, _ in network.named_parameters() if "bias" in name][1:]
