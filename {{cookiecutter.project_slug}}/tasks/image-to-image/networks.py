"""The networks: a generator, its discriminator with an image pool, and VGG19 for a loss."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import BadInput
from layers import IMAGENET, ConvBlock, Normalize, Padding, ResnetBlock
from losses import loss_weights
from task.vgg import read_vgg19


@dataclass
class Networks:
    """The networks that the options ask for; None where no loss uses it."""

    generator: nn.Module
    discriminator: "Discriminator | None" = None
    pool: "ImagePool | None" = None
    vgg: "Vgg19 | None" = None


def make_networks(opt: Namespace, channels: int = 3) -> Networks:
    """The networks for the options and images of so many channels: here alone they become networks.

    Raises:
        BadInput: The images are too small for a network, or the weights of VGG cannot be read.
    """
    networks = Networks(
        Generator(
            channels,
            channels,
            width=opt.width,
            n_downsampling=opt.n_downsampling,
            unshuffle=opt.unshuffle,
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
            2 * channels, opt.d_width, opt.d_layers, opt.d_scales, opt.d_norm
        )
        networks.pool = ImagePool(opt.pool, (2 * channels, opt.img_size, opt.img_size))
    if "perceptual" in losses:
        _check_size(opt, 16, "leave perceptual out of --losses")
        networks.vgg = Vgg19(read_vgg19(opt.vgg_weights))
    return networks


def _check_size(opt: Namespace, least: int, remedy: str) -> None:
    if opt.img_size < least:
        raise BadInput(f"--img-size {opt.img_size}: must be at least {least}; or {remedy}")


class Generator(nn.Module):
    """Turns an image into another of the same size (after Johnson et al. 2016).

    A convolution, `n_downsampling` that halve the size and double the channels, `blocks` residual
    blocks, as many steps back up, a convolution.

    Args:
        channels_in: C of the inputs.
        channels_out: K of the outputs.
        width: Channels of the first convolution.
        n_downsampling: Layers that halve the size. 0 keeps every detail, and learned fastest to
            remove noise; more of them widen the receptive field.
        unshuffle: R; the layers see each block of R x R pixels as one pixel of C * R * R channels
            (FFDNet, Zhang et al. 2018). No detail is lost, the receptive field is R times as wide,
            and the same layers take 1 / R^2 of the time. 1 leaves the pixels as they are.
        blocks: Residual blocks, at the smallest size.
        padding: How borders are continued: one of layers.PADDINGS.
        norm: One of layers.NORMS. With `none` and `batch` a pixel depends on its surroundings only,
            so that a large image can be processed in tiles; with `instance` on the whole image.
        dropout: Probability in [0, 1) inside the residual blocks.
        bias: Whether the convolutions before a norm add a bias.
        residual: The layers predict the difference between output and input (C must be K), which
            is easier to learn where the two look alike.

    Shape: (N, C, H, W) in [-1, 1] -> (N, K, H, W); any H and W. In [-1, 1] in evaluation mode. In
        training values may leave it: they would have no gradient if they were clamped.
    """

    def __init__(
        self,
        channels_in: int = 3,
        channels_out: int = 3,
        width: int = 32,
        n_downsampling: int = 0,
        unshuffle: int = 1,
        blocks: int = 4,
        padding: Padding = "zeros",
        norm: str = "none",
        dropout: float = 0.0,
        bias: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.step, self.residual = unshuffle * 2**n_downsampling, residual
        self.split: nn.Module = nn.PixelUnshuffle(unshuffle) if unshuffle > 1 else nn.Identity()
        self.join: nn.Module = nn.PixelShuffle(unshuffle) if unshuffle > 1 else nn.Identity()
        # Kernels of 7 widen the receptive field. Over blocks 3 see as far; short runs with them
        # learned faster, and were stable at a higher learning rate.
        area, size = unshuffle**2, 7 if unshuffle == 1 else 3
        channels_in, channels_out = area * channels_in, area * channels_out
        layers: list[nn.Module] = [ConvBlock(channels_in, width, size, 1, padding, norm, bias)]
        for _ in range(n_downsampling):
            layers += [ConvBlock(width, 2 * width, 3, 2, padding, norm, bias)]
            width *= 2
        for _ in range(blocks):
            layers += [ResnetBlock(width, padding, norm, dropout, bias)]
        for _ in range(n_downsampling):
            # A transposed convolution would draw a checkerboard (Odena et al. 2016).
            layers += [nn.Upsample(scale_factor=2)]
            layers += [ConvBlock(width, width // 2, 3, 1, padding, norm, bias)]
            width //= 2
        last = nn.Conv2d(width, channels_out, size, padding=size // 2, padding_mode=padding)
        if residual:
            # Output = input, nearly, is a good start. The other first weights are PyTorch's, since
            # N(0, 0.02) assumes a norm after every convolution, and learned less in equal time.
            with torch.no_grad():
                last.weight.mul_(0.1)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        right, below = self._missing(width), self._missing(height)
        padded = functional.pad(images, (0, right, 0, below), mode="replicate")
        outputs = self.join(self.layers(self.split(padded)))
        if torch.compiler.is_compiling() and not self.training:
            # A copy: a view would tie an exported file to sizes that are padded like its example.
            rows, columns = (torch.arange(n, device=images.device) for n in (height, width))
            outputs = outputs.index_select(-2, rows).index_select(-1, columns)
        else:
            outputs = outputs[..., :height, :width]
        if self.residual:
            outputs = images + outputs
        return outputs if self.training else outputs.clamp(-1, 1)

    def _missing(self, size: int) -> int:
        """Pixels from `size` to the next size that can be divided and is enough for any padding."""
        # Without the division of a negative number, which ONNX rounds towards 0.
        return max((size + self.step - 1) // self.step, 4) * self.step - size


class Discriminator(nn.Module):
    """Discriminates pairs of images at several scales (Wang et al. 2018).

    Args:
        channels_in: C, the channels of input and output image together.
        width: Channels of the first convolution.
        layers: Convolutions that halve the size.
        scales: S; each scale sees the pairs at half the size of the one before.
        norm: One of layers.NORMS.

    Shape: (N, C, H, W), the channels of input and output image in [-1, 1] -> for each scale the
        list of its feature maps, the last being the scores: (N, 1, h, w), one for each patch,
        higher for pairs that look real. H and W of at least 2 ** (layers + S).
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
        self.discriminators = nn.ModuleList(
            PatchDiscriminator(channels_in, width, layers, norm) for _ in range(scales)
        )

    def forward(self, pairs: Tensor) -> list[list[Tensor]]:
        features = []
        for i, discriminator in enumerate(self.discriminators):
            if i > 0:
                pairs = functional.avg_pool2d(pairs, 2)
            features += [discriminator(pairs)]
        return features


class PatchDiscriminator(nn.Module):
    """Discriminates every patch of a pair of images (PatchGAN, Isola et al. 2017).

    `layers` convolutions halve the size, each with twice the channels of the one before and at
    most 8 times `width`; two more keep it. The first has no norm, as in the paper.

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
    """A history of fake pairs to train the discriminator on (Shrivastava et al. 2017, section 2.3).

    Each pair gets a random place. If the place is empty, the pair is kept there; if not, half of
    the pairs are exchanged for the one that is there. All pairs of a step meet the pool as it was
    before the step, so they can be divided among processes; `end_step` puts them in. The pool draws
    from torch's generator on the CPU, as often when it is empty as when it is full. In evaluation
    mode it returns all pairs as they are.

    Args:
        size: Pairs to keep; 0 returns all pairs as they are.
        shape: (C, H, W) of a pair.

    Shape: (N, C, H, W) -> the same, without a gradient.
    """

    images: Tensor

    def __init__(self, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        # On the CPU, where reading it does not make the program wait.
        self.filled = torch.zeros(size, dtype=torch.bool)
        self.coming: list[tuple[Tensor, Tensor, Tensor]] = []  # pairs, their places, which are kept

    def get_extra_state(self) -> Tensor:
        return self.filled

    def set_extra_state(self, state: Tensor) -> None:
        self.filled = state.cpu()

    def forward(self, pairs: Tensor) -> Tensor:
        pairs, size = pairs.detach(), len(self.images)
        if size == 0 or not self.training:
            return pairs
        places, exchange = torch.randint(size, (len(pairs),)), torch.rand(len(pairs)) < 0.5
        filled = self.filled[places]
        self.coming.append((pairs, places, exchange | ~filled))
        chosen = pairs.clone()
        for i, place in enumerate(places.tolist()):
            if exchange[i] and filled[i]:
                chosen[i] = self.images[place]
        return chosen

    def end_step(self, join: Callable[[Tensor], Tensor]) -> None:
        """Puts the pairs of a step in, in the order of its micro-batches; the last one stays."""
        if self.coming:
            joined = [join(torch.cat(parts)) for parts in zip(*self.coming, strict=True)]
            pairs, places, kept = joined
            for pair, place, keep in zip(pairs, places.tolist(), kept.tolist(), strict=True):
                if keep:
                    self.images[place] = pair
                    self.filled[place] = True
        self.coming = []


class Vgg19(nn.Module):
    """Features of VGG19 (Simonyan and Zisserman 2015), frozen.

    Args:
        layers: The first 30 layers, as from task.vgg.

    Shape: (N, 3, H, W) in [-1, 1], H and W of at least 16 -> a list of three, all >= 0:
        relu2_1 (N, 128, H/2, W/2), relu4_1 (N, 512, H/8, W/8), relu5_1 (N, 512, H/16, W/16).
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.normalize = Normalize(*IMAGENET)
        self.slice1, self.slice2, self.slice3 = layers[:7], layers[7:21], layers[21:]
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        relu2 = self.slice1(self.normalize((images + 1) * 127.5))  # from [-1, 1] to [0, 255]
        relu4 = self.slice2(relu2)
        relu5 = self.slice3(relu4)
        return [relu2, relu4, relu5]

    def train(self, mode: bool = True) -> "Vgg19":
        return super().train(False)
