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
@pytest.mark.parametrize(
    ("n_downsampling", "unshuffle"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (0, 3), (1, 2)]
)
@pytest.mark.parametrize("training", [False, True])
def test_an_image_keeps_its_size(
    height: int, width: int, n_downsampling: int, unshuffle: int, training: bool
) -> None:
    network = small(n_downsampling=n_downsampling, unshuffle=unshuffle).train(training)
    images = torch.rand(2, 3, height, width) * 2 - 1
    assert network(images).shape == images.shape


@pytest.mark.parametrize(("padding", "norm"), list(itertools.product(PADDINGS, NORMS)))
@pytest.mark.parametrize(("n_downsampling", "unshuffle"), [(0, 1), (2, 1), (0, 2)])
def test_any_padding_and_norm_takes_any_size(
    padding: Padding, norm: str, n_downsampling: int, unshuffle: int
) -> None:
    given = {"padding": padding, "norm": norm, "dropout": 0.5, "bias": False}
    network = small(n_downsampling=n_downsampling, unshuffle=unshuffle, **given)
    for size in (1, 5, 10):
        y = network(torch.rand(2, 3, size, size))
        assert y.shape == (2, 3, size, size)
        y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("unshuffle", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_other_numbers_of_channels(residual: bool, unshuffle: int) -> None:
    channels = (2, 2) if residual else (1, 5)
    network = small(*channels, residual=residual, unshuffle=unshuffle)
    assert network(torch.rand(2, channels[0], 9, 9)).shape == (2, channels[1], 9, 9)


@pytest.mark.parametrize("unshuffle", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_evaluation_ends_in_the_range_of_images_and_training_keeps_the_gradient(
    residual: bool, unshuffle: int
) -> None:
    network = small(residual=residual, unshuffle=unshuffle)
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


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_a_residual_generator_begins_near_its_input(unshuffle: int) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    near, far = (
        Generator(residual=residual, unshuffle=unshuffle)(images) - images
        for residual in (True, False)
    )
    assert near.square().mean() < far.square().mean() / 50


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_residual_adds_the_input(unshuffle: int) -> None:
    network = small(residual=True, n_downsampling=1, unshuffle=unshuffle)
    for parameter in last_layer(network).parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(2, 3, 7, 9) * 2 - 1
    assert network(images).equal(images)
    network.residual = False
    assert network(images).equal(torch.zeros_like(images))


@pytest.mark.parametrize(("n_downsampling", "unshuffle"), [(0, 1), (1, 1), (2, 1), (0, 2)])
def test_what_is_missing_at_the_border_does_not_move_the_image(
    n_downsampling: int, unshuffle: int
) -> None:
    """A larger image with the same upper left corner gives the same there, but for the border."""
    network = small(n_downsampling=n_downsampling, unshuffle=unshuffle).eval()
    images = torch.rand(1, 3, 61, 63) * 2 - 1
    whole, part = network(images), network(images[..., :50, :53])
    assert (whole[..., :8, :8] - part[..., :8, :8]).abs().max() < 1e-5
    assert (whole[..., :50, :53] - part).abs().max() > 1e-5  # a network of few layers sees less


@pytest.mark.parametrize("unshuffle", [2, 3])
def test_unshuffled_layers_work_on_blocks_of_pixels(unshuffle: int) -> None:
    """The middle layers see 1 / R of the size, and each pixel of a block has weights of its own."""
    network = small(unshuffle=unshuffle, blocks=0, residual=False).eval()
    seen: list[tuple[int, ...]] = []
    network.layers.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    side = 8 * unshuffle
    flat = network(torch.full((1, 3, side, side), 0.3))[0, :, side // 2 :, side // 2 :]
    assert seen == [(1, 3 * unshuffle**2, 8, 8)]
    pixels = flat[:, :unshuffle, :unshuffle].flatten()
    assert len(set(pixels.tolist())) == 3 * unshuffle**2, "no two channels are the same"


@pytest.mark.parametrize(("unshuffle", "blocks"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 1)])
def test_a_pixel_depends_on_its_surroundings_only(unshuffle: int, blocks: int) -> None:
    """As far as task/tiles.py says."""
    torch.manual_seed(0)
    network = small(unshuffle=unshuffle, blocks=blocks).double()
    ends = 6 if unshuffle == 1 else 2  # of the first and the last convolution
    reach, found = unshuffle * (ends + 2 * blocks) + unshuffle - 1, 0
    side = 2 * reach + 3 * unshuffle
    for middle in range(reach + 1, reach + 1 + unshuffle):
        images = torch.rand(1, 3, side, side, dtype=torch.double).requires_grad_()
        network(images)[..., middle, middle].sum().backward()
        assert images.grad is not None
        rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero()
        found = max(found, int((rows - middle).abs().max()))
    assert found == reach


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_images_of_a_batch_do_not_affect_each_other(norm: str) -> None:
    network, images = small(norm=norm), torch.rand(4, 3, 32, 32)
    assert network(images)[1:3].allclose(network(images[1:3]), atol=1e-5)


def test_dropout_and_bias_reach_the_residual_blocks() -> None:
    network = Generator(dropout=0.5, bias=False, blocks=2, width=4)
    assert sum(isinstance(part, nn.Dropout) for part in network.modules()) == 2
    assert not [name for name, _ in network.named_parameters() if "bias" in name][1:]
