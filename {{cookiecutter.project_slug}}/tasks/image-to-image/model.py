"""The finished model: networks, their losses and the metrics.

All programs get it under the name `Model`, which the last line gives. To use another one, write its
class here and name it there. Every model has

    Model(opt, info)            info: a dict that the data set provides and checkpoints keep
    info                        that dict
    networks()                  {"net": network, ...}: each is saved, trained if it has parameters
    forward(*batch)             {"net": {loss name: scalar}, ...}: the losses that train each
                                network; no name twice, no graph shared by two networks' losses
    compute_sums(*batch)        {name: tensor}, which are added over the images, whatever shape they
                                have; or Rows(tensor (N, ...)), which are joined in the order of the
                                data set
    compute_metrics(totals, n)  {metric name: number}, from the sums and rows of all n images
    monitors                    {metric name: max or min}: what may decide which checkpoint is best,
                                the first one if --monitor names none
    image_grid(*batch)          an image of a batch for TensorBoard: uint8 (3, H, W)
    figures(totals)             {name: image} for TensorBoard, uint8 (3, H, W), from the same totals
    describe_output(opt)        what export.py writes into a file for those who run it
    for_prediction(opt)         the options for a model that is not trained any more

A network that keeps other things than weights, as an image pool does, has no parameters and has

    end_step(join)              called after the forward passes of a step; `join` takes a tensor of
                                this process and returns those of all, end to end

and for the other programs: from_checkpoint(path), predict(inputs), translate(inputs).
"""

from argparse import Namespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import losses
import networks
import options
from engine import modules
from engine.checkpoint import restore
from engine.data.stored import to_depth
from engine.evaluation import means
from engine.report import grids
from layers import CENTRED, Normalize
from task.depth import scale_of


class Translator(nn.Module):
    """Turns images into images.

    Called with a batch it returns the weighted losses of each network:
    `{"net": {"l1": scalar, "adversarial": scalar}, "discriminator": {"discriminator": scalar}}`.

    Args:
        opt: The options of training; here alone they become networks and losses.
        info: Of the training data: with `--images stored` as task.depth.Known tells.

    Shape: inputs (N, 3, H, W) uint8, targets (N, 3, H, W) uint8 -> the losses; or (N, C, H, W), of
        more than 8 bits float32.

    Raises:
        BadInput: As `networks.make_networks` and `losses.make_losses`.
    """

    monitors: ClassVar = {"psnr": max, "l1": min}

    def __init__(self, opt: Namespace, info: dict[str, Any]) -> None:
        super().__init__()
        self.info = info  # kept in checkpoints
        self.scale = scale_of(info)
        form, half = self.scale.form, self.scale.span / 2
        made = networks.make_networks(opt, form.channels)
        self.net, self.discriminator, self.pool = made.generator, made.discriminator, made.pool
        self.normalize = Normalize(*CENTRED)
        if not form.is_rgb:
            self.normalize = Normalize((self.scale.low + half,), (half,), most=1)
        if form.depth != "uint8":
            modules.in_float32(self.net, last=True)
        self.criteria = losses.make_losses(opt, made.vgg)
        self.weights = losses.loss_weights(opt)

    @classmethod
    def from_checkpoint(cls, path: str) -> tuple["Translator", Namespace]:
        """As engine.checkpoint.restore."""
        return restore(cls, path, options.make_parser())

    @staticmethod
    def for_prediction(opt: Namespace) -> Namespace:
        """The generator alone: translating takes neither a discriminator nor VGG."""
        more = {"adversarial", "features", "perceptual"}  # the losses that need other networks
        loss = next(name for name in losses.LOSSES if name not in more)
        return Namespace(**{**vars(opt), "losses": loss})

    def describe_output(self, opt: Namespace) -> dict[str, Any]:
        """See engine.inference.export.describe."""
        output = "float32 (N, 3, H, W), RGB in [0, 255], not rounded"
        if self.info:
            output = f"float32, like the input, from {self.scale.low:g} to {self.scale.high:g}"
        return {"image_size": None, "output": output, "range": self.scale.span, **self.info}

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the name of their attribute."""
        found = {"net": self.net, "discriminator": self.discriminator, "pool": self.pool}
        return {name: network for name, network in found.items() if network is not None}

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, dict[str, Tensor]]:
        inputs, targets = self.normalize(inputs), self.normalize(targets)
        fake = self.net(inputs).float()
        # In the order of --losses: gradients are added up in it, and must round alike each time.
        values = {
            name: criterion(fake, targets)
            for name, criterion in self.criteria.items()
            if name not in ("adversarial", "features")
        }
        named: dict[str, dict[str, Tensor]] = {"net": values}
        if self.discriminator is not None and self.pool is not None:
            # The losses of the two networks share no pass through the discriminator: one can go
            # backward after the other, and both before any weight changes.
            pairs = torch.cat([inputs, fake], dim=1)
            pred_fake = self.discriminator(pairs)
            pred_real = self.discriminator(torch.cat([inputs, targets], dim=1))
            pred_pool = self.discriminator(self.pool(pairs))
            adversarial = self.criteria["adversarial"]
            values["adversarial"] = adversarial(_scores(pred_fake))
            if "features" in self.criteria:
                values["features"] = self.criteria["features"](pred_fake, pred_real)
            loss = adversarial(_scores(pred_pool), _scores(pred_real))
            named["discriminator"] = {"discriminator": loss}
        named["net"] = {name: weight * values[name] for name, weight in self.weights.items()}
        return named

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """The outputs, which exported files give too: uint8 (N, 3, H, W) -> float32 in [0, 255]."""
        outputs = self.net(self.normalize(inputs)).float()
        values = (outputs.clamp(-1, 1) + 1) * (self.scale.span / 2)
        return values + self.scale.low if self.scale.low else values

    def translate(self, inputs: Tensor) -> Tensor:
        """The outputs of the network as images: uint8 (N, 3, H, W) -> the same."""
        return to_depth(self.predict(inputs), self.scale.form.depth)

    @torch.no_grad()
    def compute_sums(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The metrics by name, each as the sum over the images of a batch.

        `l1` in grey levels and `psnr` in dB, both of images rounded to their depth, `psnr` by the
        range of the training images, 255 for uint8; with a discriminator
        `score_fake` and `score_real`, its mean scores of outputs and of targets.
        """
        outputs = self.translate(inputs)
        errors = (outputs.float() - targets.float()).flatten(1)
        ratio = self.scale.span**2 / errors.square().mean(dim=1)
        metrics = {
            "l1": errors.abs().mean(dim=1).sum(),
            "psnr": (10 * ratio.log10()).clamp(max=losses.BEST_PSNR).sum(),
        }
        if self.discriminator is not None:
            for name, images in (("score_fake", outputs), ("score_real", targets)):
                pairs = torch.cat([self.normalize(inputs), self.normalize(images)], dim=1)
                maps = _scores(self.discriminator(pairs))
                metrics[name] = torch.stack([m.mean(dim=(1, 2, 3)) for m in maps]).mean(0).sum()
        return metrics

    def compute_metrics(self, totals: dict[str, Tensor], images: int) -> dict[str, float]:
        """The means over all images."""
        return means(totals, images)

    def figures(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """None: the images of the first batch show enough."""
        return {}

    def image_grid(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Up to six samples of a batch, in rows of input, output, target: uint8 (3, H, W).

        The outputs are those of evaluation mode, so a grid in mid-training draws no random numbers
        and changes no statistics.
        """
        mode, inputs, targets = self.training, inputs[:6], targets[:6]
        rows = torch.stack(self.shown(inputs, self.eval().translate(inputs), targets), dim=1)
        self.train(mode)
        captions = ["input", "output", "target"] * len(rows)
        return grids.captioned_grid(rows.flatten(0, 1), captions, columns=3)


    def shown(self, *images: Tensor) -> list[Tensor]:
        """Input, output and target, (C, H, W) or more of them, as pictures: (..., 3, H, W).

        All in the range of the target; see engine.report.grids.as_rgb.
        """
        deep = self.scale.form.depth != "uint8"
        return [grids.as_rgb(image, deep, like=images[-1]) for image in images]


def _scores(features: list[list[Tensor]]) -> list[Tensor]:
    """The score map of each scale of the discriminator, in float32."""
    return [maps[-1].float() for maps in features]


Model = Translator
