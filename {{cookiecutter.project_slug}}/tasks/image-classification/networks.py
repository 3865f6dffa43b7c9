"""The networks: each takes a batch of images and returns a score for every class."""

import difflib
from argparse import Namespace
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from engine import modules
from engine.errors import BadInput
from layers import CENTRED, IMAGENET, ConvBlock, Padding, ResnetBlock, Skip

NETWORKS = ("simple", "resnet9")  # of this file; those of torchvision need no entry


@dataclass
class NetworkSpec:
    """A network, with the normalisation of its input."""

    network: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def make_network(opt: Namespace, num_classes: int) -> NetworkSpec:
    """The network for `--network`: a new one is another name above and another `if` here.

    Raises:
        BadInput: There is no `if` for it, or it cannot take images of `--img-size`.
    """
    if opt.network == "resnet9":
        if opt.img_size < 8:
            raise BadInput(f"--img-size {opt.img_size}: at least 8 for resnet9")
        return NetworkSpec(ResNet9(num_classes, opt.width), *CENTRED)
    if opt.network == "simple":
        if opt.img_size < 5 and (opt.padding == "reflect" or opt.norm == "instance"):
            raise BadInput(
                f"--img-size {opt.img_size}: at least 5 for --padding reflect or --norm instance"
            )
        network = SimpleNetwork(
            num_classes, opt.blocks, opt.width, opt.padding, opt.norm, opt.dropout
        )
        return NetworkSpec(network, *CENTRED)
    if opt.network in NETWORKS:
        raise BadInput(f"--network {opt.network}: make_network in networks.py has no `if` for it")
    spec = torchvision_network(opt.network, num_classes, opt.pretrained)
    if refusal := modules.refuses(spec.network, opt.img_size):
        raise BadInput(
            f"--img-size {opt.img_size}: not for {opt.network} ({refusal}); leave the option out "
            f"for {usual_size(opt.network)}"
        )
    return spec


def usual_size(name: str) -> int:
    """The image size that a network is made for, in pixels.

    Raises:
        BadInput: There is no network of that name.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in (*NETWORKS, *names):
        near = difflib.get_close_matches(name, [*NETWORKS, *names]) or [*NETWORKS, "resnet18"]
        raise BadInput(f"--network {name}: not known; did you mean {', '.join(near)}?")
    return 224 if name in names else 32


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

    Shape: (N, 3, H, W) in [-1, 1] -> (N, K), the scores (logits); any H and W.
    """

    def __init__(
        self,
        num_classes: int,
        num_resnet_blocks: int = 2,
        width: int = 32,
        padding: Padding = "zeros",
        norm: str = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            ConvBlock(3, width, padding=padding, norm=norm),
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

    Shape: (N, 3, H, W) in [-1, 1] -> (N, K), the scores (logits); H and W >= 8.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBlock(3, width)]
        for channels in (width, 2 * width, 4 * width):
            layers += [ConvBlock(channels, 2 * channels), nn.MaxPool2d(2)]
            if channels != 2 * width:
                more = 2 * channels
                layers += [Skip(ConvBlock(more, more), ConvBlock(more, more))]
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) / 8  # the scores of an untrained network are large


def torchvision_network(name: str, num_classes: int, pretrained: bool) -> NetworkSpec:
    """A classification network of torchvision, with a new last layer of `num_classes` scores.

    Args:
        name: As torchvision.models lists it: resnet18, efficientnet_b0, vit_b_16, ...
        num_classes: K.
        pretrained: Start from the ImageNet weights, which are downloaded on first use.

    Raises:
        BadInput: Its weights cannot be downloaded.
    """
    try:
        network = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    except OSError as error:  # URLError is one
        raise BadInput(
            f"--pretrained: the weights of {name} could not be downloaded ({error}); leave the "
            f"option out, or put the file into {torch.hub.get_dir()}/checkpoints"
        ) from None
    if hasattr(network, "aux_logits"):  # googlenet and inception_v3 would return a tuple
        for part in [part for part in ("aux1", "aux2", "AuxLogits") if hasattr(network, part)]:
            setattr(network, part, None)
        network.aux_logits = False
    if hasattr(network, "transform_input"):  # else it would depend on who loads the weights
        network.transform_input = True
    _replace_head(network, num_classes)
    return NetworkSpec(network, *IMAGENET)


def _replace_head(network: nn.Module, num_classes: int) -> None:
    """Puts a new layer in the place of the last one that returns the 1,000 scores of ImageNet."""
    name, old = [
        (name, part)
        for name, part in network.named_modules()
        if getattr(part, "out_features", getattr(part, "out_channels", None)) == 1000
    ][-1]
    if isinstance(old, nn.Conv2d):  # SqueezeNet
        new: nn.Module = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
    else:
        new = nn.Linear(old.in_features, num_classes)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)
