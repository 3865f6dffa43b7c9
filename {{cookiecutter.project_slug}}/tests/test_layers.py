"""The building blocks keep what their docstrings promise."""

import itertools

import pytest
import torch
from torch import nn

from layers import NORMS, PADDINGS, ConvBlock, Normalize, Padding, ResnetBlock

OPTIONS = list(itertools.product(PADDINGS, NORMS))


def test_every_option_is_there() -> None:
    assert set(PADDINGS) == {"zeros", "reflect", "replicate", "circular"}
    assert {"batch", "instance", "none"} <= set(NORMS)


@pytest.mark.parametrize(("padding", "norm"), OPTIONS)
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (7, 1)])
def test_shape_of_conv_block(padding: Padding, norm: str, kernel_size: int, stride: int) -> None:
    block = ConvBlock(3, 5, kernel_size, stride, padding, norm)
    y = block(torch.randn(2, 3, 9, 12))
    assert y.shape == (2, 5, -(-9 // stride), -(-12 // stride))
    assert (y >= 0).all()


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_even_kernel_halves_rounding_down(padding: Padding) -> None:
    assert ConvBlock(3, 5, 4, 2, padding)(torch.randn(2, 3, 9, 12)).shape == (2, 5, 4, 6)


def test_a_slope_keeps_a_share_of_what_is_below_zero() -> None:
    x = torch.randn(2, 3, 5, 5)
    cut, leaky = (ConvBlock(3, 3, norm="none", slope=slope) for slope in (0.0, 0.25))
    leaky.load_state_dict(cut.state_dict())
    before = cut.block[0](x)
    assert before.min() < 0 < before.max()
    assert cut(x).equal(before.clamp(min=0))
    assert leaky(x).equal(torch.where(before < 0, before / 4, before))


@pytest.mark.parametrize(("padding", "norm"), OPTIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("bias", [False, True])
def test_shape_of_resnet_block(padding: Padding, norm: str, dropout: float, bias: bool) -> None:
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    block = ResnetBlock(4, padding, norm, dropout, bias)
    y = block(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert any(isinstance(part, nn.Dropout) for part in block.modules()) == (dropout > 0)


def test_resnet_block_adds_its_input() -> None:
    x = torch.randn(2, 4, 6, 6)
    block = ResnetBlock(4, norm="none", bias=True)
    added = block(x) - x
    assert added.abs().max() > 0.01
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert block(x).equal(x)


@pytest.mark.parametrize("bias", [False, True])
def test_bias_is_added_only_if_wanted(bias: bool) -> None:
    for block in (ConvBlock(2, 2, norm="none", bias=bias), ResnetBlock(2, norm="none", bias=bias)):
        names = [name for name, _ in block.named_parameters()]
        assert any(name.endswith("bias") for name in names) == bias


def test_padding_continues_the_border() -> None:
    """A block that shows its upper left neighbour tells how the border was continued."""
    x = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    corner = {}
    for padding in PADDINGS:
        block = ConvBlock(1, 1, padding=padding, norm="none")
        weight = next(block.parameters())
        nn.init.zeros_(weight)
        with torch.no_grad():
            weight[0, 0, 0, 0] = 1
        corner[padding] = block(x)[0, 0, 0, 0].item()
    assert corner == {"zeros": 0, "reflect": 5, "replicate": 1, "circular": 9}


def test_dropout_is_only_in_training() -> None:
    x = torch.randn(2, 4, 6, 6)
    block = ResnetBlock(4, norm="none", dropout=0.5)
    assert not block(x).equal(block(x))
    block.eval()
    assert block(x).equal(block(x))


def test_norms_normalise() -> None:
    x = torch.randn(4, 3, 8, 8) * 5 + 2
    by_batch, by_image = NORMS["batch"](3)(x), NORMS["instance"](3)(x)
    assert by_batch.mean(dim=(0, 2, 3)).allclose(torch.zeros(3), atol=1e-5)
    assert by_image.mean(dim=(2, 3)).allclose(torch.zeros(4, 3), atol=1e-5)
    assert NORMS["none"](3)(x).equal(x)


def test_normalize_brings_bytes_to_the_range_of_the_network() -> None:
    normalize = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    values = normalize(images)
    assert values.dtype == torch.float32
    expected = torch.tensor([[-1.0, -1.0, 0.0], [1.0, 3.0, 1.0]])
    assert values[:, :, 0, 0].allclose(expected, atol=1e-6)
    assert normalize(images.float()).equal(values)  # mixed images are floats
    assert not normalize.state_dict()


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.5, 0.25, 0.0)])
def test_normalize_keeps_the_order_in_memory_and_gives_the_same_in_each(
    mean: tuple[float, float, float]
) -> None:
    images = torch.randint(256, (5, 3, 4, 7), dtype=torch.uint8)
    last = images.contiguous(memory_format=torch.channels_last)
    normalize = Normalize(mean, (0.5, 0.5, 0.5))
    values = normalize(images)
    expected = (images / 255 - torch.tensor(mean)[:, None, None]) / 0.5
    assert values.allclose(expected, atol=1e-6)
    assert normalize(last).equal(values)
    assert values.is_contiguous()
    assert normalize(last).is_contiguous(memory_format=torch.channels_last)
    as_floats = images.float()  # of mixed images, which are used again
    assert normalize(as_floats).equal(values)
    assert as_floats.equal(images)
