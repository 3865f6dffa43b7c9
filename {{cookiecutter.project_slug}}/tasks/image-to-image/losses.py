"""The losses, each a module of its own."""

import math
from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import BadInput

# What --losses may name, with the weight of each if none is given (Isola et al. 2017 for the first
# two, Wang et al. 2018 for the others).
LOSSES = {"l1": 100.0, "adversarial": 1.0, "features": 10.0, "perceptual": 10.0}
ADVERSARIAL = ("lsgan", "hinge", "vanilla")  # what --adversarial may name


def loss_weights(opt: Namespace) -> dict[str, float]:
    """The losses that are on, by name, and how much each of them counts.

    Read from `--losses`, as in `l1:100,adversarial`; `--vgg-weights none` takes out `perceptual`.

    Raises:
        BadInput: A name or a weight is none, a name comes twice, or no loss is left.
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
            "--losses: features compares what the discriminator sees, which learns by adversarial "
            "alone; add adversarial, or take perceptual instead"
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
    """The losses that are on, by name: a new one is another name above and another line here.

    Args:
        opt: The options.
        vgg: The features that the perceptual loss compares; None without that loss.

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
        else:
            assert vgg is not None
            losses[name] = Perceptual(vgg)
    return nn.ModuleDict(losses)


class L1(nn.L1Loss):
    """Mean absolute difference: less blurred results than the squared one (Isola et al. 2017).

    Shape: outputs (N, C, H, W), targets of the same shape -> scalar >= 0, in units of the images.
    """


class Perceptual(nn.Module):
    """Difference between two images as a classification network sees them (Johnson et al. 2016).

    The features of each slice are compared by their mean absolute difference, as in Wang et al.
    2018, from where the weights are: with deeper slices shapes count more and pixels less.

    Args:
        features: Returns a list of maps for images; its weights should be frozen, as in Vgg19.
        weights: Of each map.

    Shape: outputs (N, 3, H, W), targets of the same shape -> scalar >= 0.
    """

    def __init__(
        self, features: nn.Module, weights: tuple[float, ...] = (1 / 16, 1 / 4, 1.0)
    ) -> None:
        super().__init__()
        self.features, self.weights = features, weights

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(targets)
        seen = self.features(outputs)
        maps = zip(self.weights, seen, wanted, strict=True)
        return torch.stack([weight * functional.l1_loss(a, b) for weight, a, b in maps]).sum()


class Adversarial(nn.Module):
    """The game of generator and discriminator (Goodfellow et al. 2014), for both of them.

    Each score map counts alike, whatever its size.

    Args:
        kind: lsgan: squared distance from 1 for real and 0 for drawn (Mao et al. 2017).
            hinge: distance from the right side of 1 and -1 (Lim and Ye 2017).
            vanilla: cross entropy of the scores as logits, for the generator in the form that does
            not saturate (Goodfellow et al. 2014).

    Shape: the score maps of all scales, each (N, 1, h, w) -> scalar; >= 0 but for the generator
        with hinge. With the scores of drawn images alone it is the generator's loss, with those of
        real ones as well the discriminator's.
    """

    def __init__(self, kind: str = "lsgan") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, drawn: list[Tensor], real: list[Tensor] | None = None) -> Tensor:
        if real is None:
            return torch.stack([self._generator(scores).mean() for scores in drawn]).mean()
        wrong = [self._unreal(scores).mean() for scores in real]
        wrong += [self._undrawn(scores).mean() for scores in drawn]
        return torch.stack(wrong).mean()

    def _generator(self, scores: Tensor) -> Tensor:
        return -scores if self.kind == "hinge" else self._unreal(scores)

    def _unreal(self, scores: Tensor) -> Tensor:
        """How far scores are from those of real images."""
        if self.kind == "lsgan":
            return (scores - 1) ** 2
        return functional.relu(1 - scores) if self.kind == "hinge" else functional.softplus(-scores)

    def _undrawn(self, scores: Tensor) -> Tensor:
        """How far scores are from those of drawn images."""
        return scores**2 if self.kind == "lsgan" else self._unreal(-scores)


class FeatureMatching(nn.Module):
    """Difference between drawn and real images as the discriminator sees them (Wang et al. 2018).

    The mean absolute difference of each map but the scores, averaged over maps and scales.

    Shape: for each scale the list of its maps, the last being the scores -> scalar >= 0. Real maps
        get no gradient.
    """

    def forward(self, drawn: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
        losses = [
            functional.l1_loss(a, b.detach())
            for maps, wanted in zip(drawn, real, strict=True)
            for a, b in zip(maps[:-1], wanted[:-1], strict=True)
        ]
        return torch.stack(losses).mean()
