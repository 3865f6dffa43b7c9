"""The building blocks of networks: small modules in one pattern of conv, norm, activation."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Padding = Literal["zeros", "reflect", "replicate", "circular"]  # what nn.Conv2d can do itself
PADDINGS: tuple[Padding, ...] = get_args(Padding)
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "none": nn.Identity,
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of values in [0, 1]
CENTRED = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # gives [-1, 1]


class ConvBlock(nn.Module):
    """Convolution, norm, ReLU.

    Args:
        channels_in: C of the input.
        channels_out: K of the output.
        kernel_size: Odd; the padding keeps H and W for stride 1.
        stride: 2 halves H and W, rounding up; with an even kernel_size, rounding down.
        padding: How the border is continued: one of PADDINGS.
        norm: One of NORMS.
        bias: Whether the convolution adds a bias; superfluous before a norm that subtracts it.
        slope: Of the ReLU for values < 0; above 0 it is a leaky one.

    Shape: (N, C, H, W) -> (N, K, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: Padding = "zeros",
        norm: str = "batch",
        bias: bool = False,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(
            channels_in,
            channels_out,
            kernel_size,
            stride,
            padding=(kernel_size - 1) // 2,
            padding_mode=padding,
            bias=bias,
        )
        relu = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
        block = [conv, NORMS[norm](channels_out), relu]
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResnetBlock(nn.Module):
    """Two convolutions whose result is added to their input (He et al. 2016, without a last ReLU).

    Args:
        channels: C of the input and of the output.
        padding: How the border is continued: one of PADDINGS.
        norm: One of NORMS.
        dropout: Probability in [0, 1) with which a value between the convolutions is dropped.
        bias: Whether the convolutions add a bias.

    Shape: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        padding: Padding = "zeros",
        norm: str = "batch",
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        block: list[nn.Module] = [
            ConvBlock(channels, channels, padding=padding, norm=norm, bias=bias)
        ]
        if dropout:
            block += [nn.Dropout(dropout)]
        block += [
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode=padding, bias=bias),
            NORMS[norm](channels),
        ]
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Skip(nn.Sequential):
    """Layers in a row whose result is added to their input (N, C, H, W), which has its shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Normalize(nn.Module):
    """Turns images into the range that a network expects: (x / most - mean) / std.

    Args:
        mean: Per channel, of values in [0, 1]; one alone is that of all channels.
        std: Likewise.
        most: What counts as 1; with 1, mean and std are in the unit of the images.

    Shape: (N, C, H, W) uint8 or float32 -> the same as float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], most: float = 255.0
    ) -> None:
        super().__init__()
        scale, shift = Tensor(std).mul(most).reciprocal(), -Tensor(mean) / Tensor(std)
        self.alike = len(set(zip(mean, std, strict=True))) == 1  # all channels
        if self.alike:
            scale, shift = scale[:1], shift[:1]
        # Constants, not weights: they move with the module, and stay out of its state.
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.alike:
            return images.to(self.scale.dtype, copy=True).mul_(self.scale).add_(self.shift)
        n, channels, height, width = images.shape
        # Long rows, as they lie in memory: rows of C numbers would take four times as long.
        rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels)
        scale, shift = self.scale.repeat(width), self.shift.repeat(width)
        values = (rows.float() * scale).add_(shift)
        values = values.view(n, height, width, channels).permute(0, 3, 1, 2)
        # The order in memory of the images is kept: networks are faster in the one chosen for them.
        channels_last = images.stride(1) == 1
        order = torch.channels_last if channels_last else torch.contiguous_format
        return values.contiguous(memory_format=order)
