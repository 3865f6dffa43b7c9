"""The networks: one that draws images, one that judges them, and one that compares them."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import BadInput
from layers import IMAGENET, ConvBlock, Normalize, Padding, ResnetBlock
from losses import loss_weights


@dataclass
class Networks:
    """The networks that the options ask for, and the pool; None is what the losses do not use."""

    generator: nn.Module
    discriminator: "Discriminator | None" = None
    pool: "ImagePool | None" = None
    vgg: "Vgg19 | None" = None


def make_networks(opt: Namespace) -> Networks:
    """The networks that the options describe: the one place where options become networks.

    Raises:
        BadInput: The images are too small for a network, or the weights of VGG cannot be read.
    """
    networks = Networks(
        Generator(
            width=opt.width,
            downs=opt.downs,
            blocks=opt.blocks,
            padding=opt.padding,
            norm=opt.norm,
            dropout=opt.dropout,
            bias=opt.norm == "none",
            residual=opt.residual,
        )
    )
    losses = loss_weights(opt)
    if "adversarial" in losses:
        _check_size(opt, 2 ** (opt.d_scales + opt.d_layers), "lower --d-scales or --d-layers")
        networks.discriminator = Discriminator(
            6, opt.d_width, opt.d_layers, opt.d_scales, opt.d_norm
        )
        networks.pool = ImagePool(opt.pool, (6, opt.img_size, opt.img_size))
    if "perceptual" in losses:
        _check_size(opt, 16, "leave perceptual out of --losses")
        networks.vgg = Vgg19(read_vgg_weights(opt.vgg_weights))
    return networks


def _check_size(opt: Namespace, least: int, remedy: str) -> None:
    if opt.img_size < least:
        raise BadInput(f"--img-size {opt.img_size}: must be at least {least}; or {remedy}")


class Generator(nn.Module):
    """Turns an image into another of the same size (after Johnson et al. 2016).

    A convolution, `downs` that halve the size and double the channels, `blocks` residual blocks,
    `downs` steps back up, a convolution.

    Args:
        channels_in: C of the images that come in.
        channels_out: K of the images that go out.
        width: Channels of the first convolution.
        downs: How often the size is halved. 0 keeps every detail, and learned fastest to take out
            noise; with 2, say, each pixel sees more of the image.
        blocks: Residual blocks, at the smallest size.
        padding: How borders are continued: one of layers.PADDINGS.
        norm: One of layers.NORMS. With `none` a pixel depends on its surroundings only, so that a
            large image can be drawn tile by tile.
        dropout: Probability in [0, 1) inside the residual blocks.
        bias: Whether the convolutions before a norm add a bias.
        residual: The network draws what has to be added to its input (C must be K). Right where
            input and output look alike: the noise is easier to tell than the picture below it.

    Shape: (N, C, H, W) in [-1, 1] -> (N, K, H, W); any H and W. In [-1, 1] in evaluation mode. In
        training values may leave it: a limit would take away their gradient, and the losses bring
        them back.
    """

    def __init__(
        self,
        channels_in: int = 3,
        channels_out: int = 3,
        width: int = 32,
        downs: int = 0,
        blocks: int = 4,
        padding: Padding = "zeros",
        norm: str = "none",
        dropout: float = 0.0,
        bias: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.step, self.residual = 2**downs, residual
        layers: list[nn.Module] = [ConvBlock(channels_in, width, 7, 1, padding, norm, bias)]
        for _ in range(downs):
            layers += [ConvBlock(width, 2 * width, 3, 2, padding, norm, bias)]
            width *= 2
        for _ in range(blocks):
            layers += [ResnetBlock(width, padding, norm, dropout, bias)]
        for _ in range(downs):
            # Repeated values treat all places alike. A transposed convolution does not, which
            # shows as a checkerboard (Odena et al. 2016).
            layers += [nn.Upsample(scale_factor=2)]
            layers += [ConvBlock(width, width // 2, 3, 1, padding, norm, bias)]
            width //= 2
        last = nn.Conv2d(width, channels_out, 7, padding=3, padding_mode=padding)
        if residual:
            # To begin near output = input saves the steps that would lead there. Else the first
            # weights are PyTorch's: with the N(0, 0.02) of the literature, which counts on a norm
            # behind every convolution, less was learned in the same time.
            with torch.no_grad():
                last.weight.mul_(0.1)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        right, below = self._missing(width), self._missing(height)
        padded = functional.pad(images, (0, right, 0, below), mode="replicate")
        drawn = self.layers(padded)[..., :height, :width]
        if self.residual:
            drawn = images + drawn
        return drawn if self.training else drawn.clamp(-1, 1)

    def _missing(self, size: int) -> int:
        """Pixels from `size` to the next size that can be halved, and is enough for any padding."""
        return max(-(-size // self.step), 4) * self.step - size


class Discriminator(nn.Module):
    """Judges pairs of images at several sizes (Wang et al. 2018, multi-scale discriminators).

    Args:
        channels_in: C, the channels of input and output image together.
        width: Channels of the first convolution.
        layers: Convolutions that halve the size.
        scales: S; each scale sees the pairs at half the size of the one before.
        norm: One of layers.NORMS.

    Shape: (N, C, H, W), input and output image in [-1, 1] one after the other -> for each scale
        the list of what its convolutions see, the last being the scores: (N, 1, h, w), one for
        each patch, higher for pairs that look real. H and W of at least 2 ** (layers + S).
    """

    def __init__(
        self,
        channels_in: int = 6,
        width: int = 32,
        layers: int = 3,
        scales: int = 2,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        self.judges = nn.ModuleList(
            PatchDiscriminator(channels_in, width, layers, norm) for _ in range(scales)
        )

    def forward(self, pairs: Tensor) -> list[list[Tensor]]:
        features = []
        for i, judge in enumerate(self.judges):
            if i > 0:
                pairs = functional.avg_pool2d(pairs, 2)
            features += [judge(pairs)]
        return features


class PatchDiscriminator(nn.Module):
    """Judges every patch of a pair of images (Isola et al. 2017, PatchGAN).

    `layers` convolutions halve the size, each with twice the channels of the one before and at
    most 8 times `width`; two more keep it. As in the paper the first has no norm.

    Args:
        channels_in: C.
        width: Channels of the first convolution.
        layers: Convolutions that halve the size.
        norm: One of layers.NORMS.

    Shape: (N, C, H, W) -> the list of `layers` + 2 maps, the last being the scores (N, 1, h, w).
    """

    def __init__(self, channels_in: int, width: int, layers: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        # Kernels of 4 and not of 3: a multiple of the stride, so that all pixels count alike.
        self.blocks = nn.ModuleList(
            [ConvBlock(channels_in, width, 4, 2, norm="none", bias=True, slope=0.2)]
        )
        for i in range(1, layers):
            old, new = width * min(8, 2 ** (i - 1)), width * min(8, 2**i)
            self.blocks.append(ConvBlock(old, new, 4, 2, norm=norm, bias=bias, slope=0.2))
        old, new = width * min(8, 2 ** (layers - 1)), width * min(8, 2**layers)
        self.blocks.append(ConvBlock(old, new, 3, 1, norm=norm, bias=bias, slope=0.2))
        self.blocks.append(nn.Conv2d(new, 1, 3, padding=1))

    def forward(self, pairs: Tensor) -> list[Tensor]:
        features = [pairs]
        for block in self.blocks:
            features += [block(features[-1])]
        return features[1:]


class ImagePool(nn.Module):
    """Remembers drawn pairs, so that the discriminator does not forget how it was fooled before.

    Once it is full, half of the pairs that come are exchanged for remembered ones (Shrivastava et
    al. 2017, section 2.3). What it holds is saved with its state. It draws from torch's generator
    on the CPU, as often for an empty pool as for a full one. In evaluation mode it does nothing.

    Args:
        size: Pairs to remember; 0 hands all pairs through.
        shape: (C, H, W) of a pair.

    Shape: (N, C, H, W) -> the same, without a gradient.
    """

    images: Tensor

    def __init__(self, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.count = 0  # on the CPU, where asking for it does not make the device wait

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        self.count = int(state)

    def forward(self, pairs: Tensor) -> Tensor:
        pairs, size = pairs.detach(), len(self.images)
        if size == 0 or not self.training:
            return pairs
        places = torch.randint(size, (len(pairs),)).tolist()
        exchange = (torch.rand(len(pairs)) < 0.5).tolist()
        chosen = pairs.clone()
        for i, pair in enumerate(pairs):
            if self.count < size:
                self.images[self.count] = pair
                self.count += 1
            elif exchange[i]:
                chosen[i] = self.images[places[i]]
                self.images[places[i]] = pair
        return chosen


class Vgg19(nn.Module):
    """The features of VGG19 (Simonyan and Zisserman 2015), cut into three slices and frozen.

    Args:
        weights: As `read_vgg_weights` returns them.

    Shape: (N, 3, H, W) in [-1, 1], H and W of at least 16 -> a list of three, all >= 0:
        relu2_1 (N, 128, H/2, W/2), relu4_1 (N, 512, H/8, W/8), relu5_1 (N, 512, H/16, W/16).
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        features = _vgg_features()
        features.load_state_dict(weights, assign=True)
        self.normalize = Normalize(*IMAGENET)
        self.slice1, self.slice2, self.slice3 = features[:7], features[7:21], features[21:]
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        relu2 = self.slice1(self.normalize((images + 1) * 127.5))  # from [-1, 1] to [0, 255]
        relu4 = self.slice2(relu2)
        relu5 = self.slice3(relu4)
        return [relu2, relu4, relu5]

    def train(self, mode: bool = True) -> "Vgg19":
        return super().train(False)  # a yardstick does not change with the mode


def _vgg_features() -> nn.Sequential:
    """The part of torchvision's VGG19 that is used, without weights and without memory for them."""
    with torch.device("meta"):
        return torchvision.models.vgg19().features[:30]


def read_vgg_weights(source: str) -> dict[str, Tensor]:
    """The weights of VGG19's features.

    Args:
        source: `download` for torchvision's, which are kept after the first time; or a file with
            a state dict of torchvision's vgg19, of which the first 30 features are enough.

    Raises:
        BadInput: They cannot be downloaded, or read, or are those of another network.
    """
    state = _download_vgg() if source == "download" else _read_state(Path(source))
    weights = {}
    for name, own in _vgg_features().state_dict().items():
        value = state.get(f"features.{name}", state.get(name)) if isinstance(state, dict) else None
        if not isinstance(value, Tensor) or value.shape != own.shape:
            raise BadInput(
                f"--vgg-weights {source}: no features.{name} of shape {tuple(own.shape)} in it; "
                "give a state dict of torchvision's vgg19"
            )
        weights[name] = value.float()
    return weights


def _download_vgg() -> Any:
    weights = torchvision.models.VGG19_Weights.IMAGENET1K_V1
    how = {"map_location": "cpu", "weights_only": True}
    try:
        return weights.get_state_dict(progress=True, check_hash=True, **how)
    except OSError as error:  # URLError is one
        problem = f"VGG19 could not be downloaded ({error})"
    except Exception as error:  # a damaged file makes zipfile and pickle raise almost anything
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        problem = f"VGG19 is damaged ({error}), delete it from {folder} and try again"
    raise BadInput(
        f"--vgg-weights download: {problem}; or give a FILE, or train without the perceptual loss: "
        "--vgg-weights none"
    )


def _read_state(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"--vgg-weights {path}: no such file; give one, or download, or none")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes zipfile and pickle raise almost anything
        raise BadInput(
            f"--vgg-weights {path}: damaged, or no state dict ({error}); give another file"
        ) from None
