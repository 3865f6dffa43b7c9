"""The finished model: a network, its loss, and what they are judged by."""

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
from engine.errors import BadInput
from layers import Normalize


class Classifier(nn.Module):
    """Says which of the classes an image shows. The programs know this class and nothing behind it.

    Called with a batch it returns its losses, named, under the name of the optimizer that is to
    lower them: `{"net": {"cross_entropy": scalar}}`.

    Args:
        opt: The options of training; this is the one place where they become a network and a loss.
        about: Of the training data: "classes", with the number of images of each.

    Shape: images (N, 3, H, W) uint8, labels (N,) int64 in [0, K) -> the losses.

    Raises:
        BadInput: The options name an unknown network.
    """

    headline = "accuracy"  # the metric, higher is better, that decides which checkpoint is best

    def __init__(self, opt: Namespace, about: dict[str, Any]) -> None:
        super().__init__()
        self.about = about  # kept in checkpoints, to build the model again
        self.classes = list(about["classes"])
        choice = networks.make_network(opt, len(self.classes))
        self.net, self.frozen = choice.network, choice.frozen
        self.normalize = Normalize(choice.mean, choice.std)
        self.criterion = losses.make_loss(opt, list(about["classes"].values()))
        self.loss_name = opt.loss.replace("-", "_")

    @classmethod
    def from_checkpoint(cls, path: str) -> tuple["Classifier", Namespace]:
        """The trained model in evaluation mode, and the options that it was trained with.

        Raises:
            BadInput: The file is missing, damaged, or not a checkpoint of this model.
        """
        state = load(Path(path))
        if "classes" not in state:
            raise BadInput(f"{path}: a checkpoint without classes, of another kind of model")
        # Its weights are in the checkpoint: ImageNet's need not be downloaded for it.
        defaults = vars(options.make_parser().parse_args([]))  # for options added since
        opt = Namespace(**{**defaults, **state["args"], "pretrained": False})
        model = cls(opt, {"classes": state["classes"]})
        load_weights(model.net, state["net"], path)
        return model.eval(), opt

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the name of their attribute: each is saved, and has an optimizer."""
        return {"net": self.net}

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        return {"net": {self.loss_name: self.criterion(self.scores(images), labels)}}

    def scores(self, images: Tensor) -> Tensor:
        """The score (logit) of each class: images (N, 3, H, W) uint8 -> (N, K) float32."""
        return self.net(self.normalize(images)).float()

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The metrics of a batch by name, each as the sum over its images."""
        scores = self.scores(images)
        return {
            "loss": self.criterion(scores, labels) * len(labels),
            "accuracy": (scores.argmax(dim=1) == labels).sum(),
        }

    def picture(self, images: Tensor, labels: Tensor) -> Tensor:
        """Up to 64 images of a batch as the network gets them: uint8, (3, H, W)."""
        return make_grid(images[:64].cpu(), nrow=8)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for part in self.frozen:  # else the batch norm of frozen features would go on learning
            part.eval()
        return self
