"""The losses, each a module of its own."""

import math
from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import BadInput

# The names for --losses, each with its default weight (Isola et al. 2017 for the first two, Wang et
# al. 2018 for the others).
LOSSES = {"l1": 100.0, "adversarial": 1.0, "features": 10.0, "perceptual": 10.0}
ADVERSARIAL = ("lsgan", "hinge", "vanilla")  # the names for --adversarial
BEST_PSNR = 100.0  # dB; without any error it would be infinite, and so would be a mean


def loss_weights(opt: Namespace) -> dict[str, float]:
    """The weight of each loss of the generator, by name.

    Read from `--losses`, as in `l1:100,adversarial`; `--vgg-weights none` takes out `perceptual`.

    Raises:
        BadInput: A name is unknown or comes twice, a weight is no positive number, `features` is
            without `adversarial`, or no loss is left.
    """
    weights: dict[str, float] = {}
    for part in opt.losses.split(","):
        name, colon, number = part.strip().partition(":")
        if name not in LOSSES:
            raise BadInput(f"--losses: {name!r} is not known; choose from {', '.join(LOSSES)}")
        if name in weights:
            raise BadInput(f"--losses: {name} comes twice; name each loss once")
        weights[name] = _positive(number, name) if colon else LOSSES[name]
    if "features" in weights and "adversarial" not in weights:
        raise BadInput(
            "--losses: features compares features of the discriminator, which adversarial trains; "
            "add adversarial, or use perceptual instead"
        )
    if opt.vgg_weights == "none":
        weights.pop("perceptual", None)
        if not weights:
            raise BadInput("--losses: perceptual alone needs --vgg-weights download, or a FILE")
    return weights


def _positive(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadInput(f"--losses: the weight {text!r} of {name} must be a number above 0")
    return value


def make_losses(opt: Namespace, vgg: nn.Module | None) -> nn.ModuleDict:
    """The losses of the generator by name: a new one is a name in LOSSES and a line here.

    Args:
        opt: The options.
        vgg: The network for the perceptual loss; None without that loss.

    Raises:
        BadInput: As `loss_weights`.
    """
    losses: dict[str, nn.Module] = {}
    for name in loss_weights(opt):
        if name == "l1":
            losses[name] = L1()
        elif name == "adversarial":
            losses[name] = Adversarial(opt.adversarial)
        elif name == "features":
            losses[name] = FeatureMatching()
        elif name == "perceptual" and vgg is not None:
            losses[name] = Perceptual(vgg)
        else:
            raise BadInput(f"--losses: make_losses in losses.py has no branch for {name}")
    return nn.ModuleDict(losses)


class L1(nn.L1Loss):
    """Mean absolute difference, which blurs less than the squared one (Isola et al. 2017).

    Shape: outputs (N, C, H, W), targets of the same shape -> scalar >= 0, in units of the images.
    """


class Perceptual(nn.Module):
    """Difference between the features of two images (Johnson et al. 2016).

    The weighted sum of the mean absolute differences of the maps, as in Wang et al. 2018.

    Args:
        features: Maps images to a list of feature maps; its weights should be frozen, as in Vgg19.
        weights: The weight of each map.

    Shape: outputs (N, 3, H, W), targets of the same shape -> scalar >= 0.
    """

    def __init__(
        self, features: nn.Module, weights: tuple[float, ...] = (1 / 16, 1 / 4, 1.0)
    ) -> None:
        super().__init__()
        self.features, self.weights = features, weights

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.features(targets)
        maps = zip(self.weights, self.features(outputs), expected, strict=True)
        return torch.stack([weight * functional.l1_loss(a, b) for weight, a, b in maps]).sum()


class Adversarial(nn.Module):
    """The adversarial loss of generator and discriminator (Goodfellow et al. 2014).

    It is the mean over the score maps, whatever their sizes.

    Args:
        kind: lsgan: squared distance from 1 for real and from 0 for fake (Mao et al. 2017).
            hinge: hinge loss with the margins 1 and -1 (Lim and Ye 2017).
            vanilla: binary cross entropy with the scores as logits, non-saturating for the
            generator (Goodfellow et al. 2014).

    Shape: the score maps of all scales, each (N, 1, h, w) -> scalar; >= 0 but for the generator
        with hinge. The scores of fake images alone give the loss of the generator, with those of
        real ones the loss of the discriminator.
    """

    def __init__(self, kind: str = "lsgan") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, fake: list[Tensor], real: list[Tensor] | None = None) -> Tensor:
        if real is None:
            return torch.stack([self._generator(scores).mean() for scores in fake]).mean()
        losses = [self._real(scores).mean() for scores in real]
        losses += [self._fake(scores).mean() for scores in fake]
        return torch.stack(losses).mean()

    def _generator(self, scores: Tensor) -> Tensor:
        return -scores if self.kind == "hinge" else self._real(scores)

    def _real(self, scores: Tensor) -> Tensor:
        """The loss of each score of a real image."""
        if self.kind == "lsgan":
            return (scores - 1) ** 2
        return functional.relu(1 - scores) if self.kind == "hinge" else functional.softplus(-scores)

    def _fake(self, scores: Tensor) -> Tensor:
        """The loss of each score of a fake image."""
        return scores**2 if self.kind == "lsgan" else self._real(-scores)


class FeatureMatching(nn.Module):
    """Difference between the discriminator's features of fake and real images (Wang et al. 2018).

    The mean absolute difference of each map but the scores, averaged over maps and scales.

    Shape: for each scale the list of its maps, the last being the scores -> scalar >= 0. Real maps
        get no gradient.
    """

    def forward(self, fake: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
        losses = [
            functional.l1_loss(a, b.detach())
            for maps, expected in zip(fake, real, strict=True)
            for a, b in zip(maps[:-1], expected[:-1], strict=True)
        ]
        return torch.stack(losses).mean()
