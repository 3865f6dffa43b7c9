"""The networks: each takes a batch of images and returns a score for every class."""

from argparse import Namespace
from dataclasses import dataclass

from torch import Tensor, nn

from engine import modules
from engine.errors import BadInput
from layers import CENTRED, ConvBlock, Padding, ResnetBlock, Skip
from task import libraries
from task.preprocessing import Preset

NETWORKS = ("simple", "resnet9")  # of this file; not those of libraries


@dataclass
class NetworkSpec:
    """A network, with the normalisation of its input."""

    network: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def make_network(opt: Namespace, num_classes: int, channels: int = 3) -> NetworkSpec:
    """The network for `--network`: a new one is another name above and another `if` here.

    Images have `channels`; the normalisation is that of RGB.

    Raises:
        BadInput: There is no `if` for it, or it cannot take images of `--img-size`.
    """
    if opt.network == "resnet9":
        if opt.img_size < 8:
            raise BadInput(f"--img-size {opt.img_size}: at least 8 for resnet9")
        return NetworkSpec(ResNet9(num_classes, opt.width, channels), *CENTRED)
    if opt.network == "simple":
        if opt.img_size < 5 and opt.norm == "instance":
            raise BadInput(f"--img-size {opt.img_size}: at least 5 for --norm instance")
        how = {"norm": opt.norm, "dropout": opt.dropout, "channels_in": channels}
        network = SimpleNetwork(num_classes, opt.blocks, opt.width, **how)
        return NetworkSpec(network, *CENTRED)
    if opt.network in NETWORKS:
        raise BadInput(f"--network {opt.network}: make_network in networks.py has no `if` for it")
    usual = libraries.preset(opt.network)
    made = libraries.make(
        opt.network, num_classes, opt.pretrained, opt.dropout, opt.img_size, channels
    )
    if refusal := modules.refuses(made, opt.img_size, channels):
        raise BadInput(
            f"--img-size {opt.img_size}: not for {opt.network} ({refusal}); leave the option out "
            f"for {usual.size}"
        )
    return NetworkSpec(made, usual.mean, usual.std)


def preset_of(name: str) -> Preset | None:
    """What the trained weights of a library's network were made with; None for those of this file.

    Raises:
        BadInput: There is no network of that name.
    """
    return None if name in NETWORKS else libraries.preset(name, NETWORKS)


class SimpleNetwork(nn.Module):
    """A small residual network for small images.

    Three convolutions bring the image to a quarter of its size, `num_resnet_blocks` residual
    blocks work there, and the mean over all places is classified by one linear layer.

    Args:
        num_classes: K.
        num_resnet_blocks: Residual blocks.
        width: Channels of the first convolution; the residual blocks have twice as many.
        padding: How borders are continued: one of layers.PADDINGS.
        norm: One of layers.NORMS.
        dropout: Probability in [0, 1) inside the residual blocks.
        channels_in: C of the images.

    Shape: (N, C, H, W) in [-1, 1] -> (N, K), the scores (logits); any H and W.
    """

    def __init__(
        self,
        num_classes: int,
        num_resnet_blocks: int = 2,
        width: int = 32,
        padding: Padding = "zeros",
        norm: str = "batch",
        dropout: float = 0.0,
        channels_in: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            ConvBlock(channels_in, width, padding=padding, norm=norm),
            ConvBlock(width, 2 * width, stride=2, padding=padding, norm=norm),
            ConvBlock(2 * width, 2 * width, stride=2, padding=padding, norm=norm),
        ]
        for _ in range(num_resnet_blocks):
            layers += [ResnetBlock(2 * width, padding=padding, norm=norm, dropout=dropout)]
        layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ResNet9(nn.Module):
    """A residual network that is good for its size at 32 px (Page 2018, How to Train Your ResNet).

    Eight convolutions and a linear layer. Three times the image is halved by maxima; after the
    first and the last time, two convolutions are added to their input.

    Args:
        num_classes: K.
        width: Channels of the first convolution; the last ones have eight times as many.
        channels_in: C of the images.

    Shape: (N, C, H, W) in [-1, 1] -> (N, K), the scores (logits); H and W >= 8.
    """

    def __init__(self, num_classes: int, width: int = 64, channels_in: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBlock(channels_in, width)]
        for channels in (width, 2 * width, 4 * width):
            layers += [ConvBlock(channels, 2 * channels), nn.MaxPool2d(2)]
            if channels != 2 * width:
                more = 2 * channels
                layers += [Skip(ConvBlock(more, more), ConvBlock(more, more))]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = Eighth(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Eighth(nn.Linear):
    """A linear layer over 8, for features whose scores are large as long as nothing is trained."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 8
