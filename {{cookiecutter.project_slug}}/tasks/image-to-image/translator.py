"""The finished model: networks and losses in one, and what they are judged by."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

import losses
import networks
import options
from engine.checkpoint import load, load_weights
from layers import CENTRED, Normalize

BEST_PSNR = 100.0  # dB; without an error at all it would be infinite, and so would be the mean


class Translator(nn.Module):
    """Turns images into images. The programs know this class and nothing behind it.

    It is a super network: networks and losses are within, and called with a batch it returns the
    losses, named and weighted, under the name of the optimizer that is to lower them:
    `{"net": {"l1": scalar, "adversarial": scalar}, "discriminator": {"discriminator": scalar}}`.

    Args:
        opt: The options of training; this is the one place where they become networks and losses.
        about: Of the training data; kept in checkpoints.

    Shape: inputs (N, 3, H, W) uint8, targets (N, 3, H, W) uint8 -> the losses.

    Raises:
        BadInput: As `networks.make_networks` and `losses.make_losses`.
    """

    headline = "psnr"  # the metric, higher is better, that decides which checkpoint is best

    def __init__(self, opt: Namespace, about: dict[str, Any]) -> None:
        super().__init__()
        self.about = about
        made = networks.make_networks(opt)
        self.net, self.discriminator, self.pool = made.generator, made.discriminator, made.pool
        self.normalize = Normalize(*CENTRED)
        self.criteria = losses.make_losses(opt, made.vgg)
        self.weights = losses.loss_weights(opt)

    @classmethod
    def from_checkpoint(cls, path: str) -> tuple["Translator", Namespace]:
        """The trained model in evaluation mode, and the options that it was trained with.

        Raises:
            BadInput: The file is missing, damaged, or not a checkpoint of this model.
        """
        state = load(Path(path))
        defaults = vars(options.make_parser().parse_args([]))  # for options added since
        opt = Namespace(**{**defaults, **state["args"]})
        # To draw images takes the generator alone: VGG need not be downloaded for it.
        model = cls(Namespace(**{**vars(opt), "losses": "l1"}), {})
        load_weights(model.net, state["net"], path)
        return model.eval(), opt

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the name of their attribute: each is saved, and trained if it can be."""
        found = {"net": self.net, "discriminator": self.discriminator, "pool": self.pool}
        return {name: network for name, network in found.items() if network is not None}

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, dict[str, Tensor]]:
        inputs, targets = self.normalize(inputs), self.normalize(targets)
        drawn = self.net(inputs).float()
        found: dict[str, dict[str, Tensor]] = {"net": {}}
        for name in self.criteria.keys() - {"adversarial", "features"}:
            found["net"][name] = self.criteria[name](drawn, targets)
        if self.discriminator is not None and self.pool is not None:
            pair = torch.cat([inputs, drawn], dim=1)
            # Each network is judged in passes of its own: the two losses share no part of the
            # graph, so one can go backward after the other, and both before a weight is changed.
            judged = self.discriminator(pair)
            real = self.discriminator(torch.cat([inputs, targets], dim=1))
            remembered = self.discriminator(self.pool(pair))
            adversarial = self.criteria["adversarial"]
            found["net"]["adversarial"] = adversarial(_scores(judged))
            if "features" in self.criteria:
                found["net"]["features"] = self.criteria["features"](judged, real)
            loss = adversarial(_scores(remembered), _scores(real))
            found["discriminator"] = {"discriminator": loss}
        weighted = {name: self.weights[name] * found["net"][name] for name in self.weights}
        return {**found, "net": weighted}

    @torch.no_grad()
    def translate(self, inputs: Tensor) -> Tensor:
        """The images that the network draws, in evaluation mode: uint8 (N, 3, H, W) -> the same."""
        drawn = _in_evaluation(self.net, self.normalize(inputs)).float()
        return ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    @torch.no_grad()
    def measure(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The metrics of a batch by name, each as the sum over its images.

        `l1` in grey levels and `psnr` in dB, both of images as they are saved; the mean scores that
        the discriminator gives to drawn and to real images.
        """
        outputs = self.translate(inputs)
        errors = (outputs.float() - targets.float()).flatten(1)
        ratio = 255**2 / errors.square().mean(dim=1)
        metrics = {
            "l1": errors.abs().mean(dim=1).sum(),
            "psnr": (10 * ratio.log10()).clamp(max=BEST_PSNR).sum(),
        }
        if self.discriminator is not None:
            given = self.normalize(inputs)
            for name, images in (("score_drawn", outputs), ("score_real", targets)):
                pairs = torch.cat([given, self.normalize(images)], dim=1)
                maps = _scores(_in_evaluation(self.discriminator, pairs))
                metrics[name] = torch.stack([m.mean(dim=(1, 2, 3)) for m in maps]).mean(0).sum()
        return metrics

    def picture(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Up to six samples of a batch, in rows of input, output, target: uint8, (3, H, W)."""
        shown = torch.stack([inputs[:6], self.translate(inputs[:6]), targets[:6]], dim=1)
        return make_grid(shown.flatten(0, 1).cpu(), nrow=3)


def _scores(features: list[list[Tensor]]) -> list[Tensor]:
    """The score maps among all that the discriminator sees, in float32."""
    return [maps[-1].float() for maps in features]


def _in_evaluation(network: nn.Module, images: Tensor) -> Any:
    """What a network makes of images in evaluation mode; its mode is afterwards as before."""
    mode = network.training
    try:
        return network.eval()(images)
    finally:
        network.train(mode)
