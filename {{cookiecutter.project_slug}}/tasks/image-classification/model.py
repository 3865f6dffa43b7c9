"""The finished model: a network, its loss and its metrics.

All programs get it under the name `Model`, which the last line gives. To use another one, write its
class here and name it there. Every model has

    Model(opt, info)            info: a dict that the data set provides and checkpoints keep
    info                        that dict
    networks()                  {"net": network, ...}: each is saved, trained if it has parameters
    forward(*batch)             {"net": {loss name: scalar}, ...}: the losses that train each
                                network; no name twice, no graph shared by two networks' losses
    compute_metrics(*batch)     {metric name: sum over the images of the batch, or a table (K, K)}
    monitor                     the metric, higher is better, that decides which checkpoint is best
    image_grid(*batch)          an image of a batch for TensorBoard: uint8 (3, H, W)

and for the other programs: from_checkpoint(path), scores(images), predict(images), classes.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import losses
import networks
import options
from engine.checkpoint import judged, load, load_weights
from engine.errors import BadInput
from engine.report.grids import captioned_grid, grid_columns
from layers import Normalize
from task.augmentation import check_eval_size
from task.classes import count_confusion, label_captions


class Classifier(nn.Module):
    """Predicts the class of an image.

    Called with a batch it returns the losses of its network: `{"net": {"cross_entropy": scalar}}`.

    Args:
        opt: The options of training; here alone they become a network and a loss.
        info: Of the training data: "classes", with the number of images of each.

    Shape: images (N, 3, H, W) uint8, or float32 in [0, 255]; labels (N,) int64 in [0, K), or the
        share of each class, (N, K) float32 -> the losses.

    Raises:
        BadInput: The options name an unknown network.
    """

    monitor = "accuracy"  # the metric, higher is better, that decides which checkpoint is best

    def __init__(self, opt: Namespace, info: dict[str, Any]) -> None:
        super().__init__()
        self.info = info  # kept in checkpoints, to build the model again
        self.classes = list(info["classes"])
        spec = networks.make_network(opt, len(self.classes))
        self.net, self.frozen = spec.network, spec.frozen
        check_eval_size(opt, self.net)
        self.normalize = Normalize(spec.mean, spec.std)
        self.criterion = losses.make_loss(opt, list(info["classes"].values()))
        self.loss_name = opt.loss.replace("-", "_")

    @classmethod
    def from_checkpoint(cls, path: str) -> tuple["Classifier", Namespace]:
        """The trained model in evaluation mode, and the options that it was trained with.

        Raises:
            BadInput: The file is missing, damaged, or not a checkpoint of this model.
        """
        state = load(Path(path))
        if state.get("model") != cls.__name__:
            raise BadInput(
                f"{path}: a checkpoint of another model ({state.get('model')}); use one of a run "
                "of this project"
            )
        # The weights are in the checkpoint; those of ImageNet need not be downloaded.
        opt = options.make_parser().read_back({**state["args"], "pretrained": False})
        older = {"classes": state.get("classes", {})}  # as checkpoints had it before `info`
        model = cls(opt, state.get("info", older))
        weights = judged(state, "net")
        load_weights(model.net, weights, path, "networks.py was changed since then")
        return model.eval(), opt

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the name of their attribute."""
        return {"net": self.net}

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        return {"net": {self.loss_name: self.criterion(self.scores(images), labels)}}

    def scores(self, images: Tensor) -> Tensor:
        """The score (logit) of each class: images (N, 3, H, W) -> (N, K) float32."""
        return self.net(self.normalize(images)).float()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The probability of each class, which exported files give too: as `scores`."""
        return self.scores(images).softmax(dim=1)

    @torch.no_grad()
    def compute_metrics(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The metrics of a batch by name, each as the sum over its images."""
        scores = self.scores(images)
        return {
            "loss": self.criterion(scores, labels) * len(labels),
            "accuracy": (scores.argmax(dim=1) == labels).sum(),
            "confusion": count_confusion(scores, labels),
        }

    def image_grid(self, images: Tensor, labels: Tensor) -> Tensor:
        """Up to 64 images, with classes and in evaluation wrong predictions: uint8 (3, H, W)."""
        columns = grid_columns(images)
        images, labels = images[: columns**2], labels[: columns**2]
        predicted = None if self.training else self.scores(images).argmax(dim=1)
        return captioned_grid(images, label_captions(labels, self.classes, predicted), columns)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for part in self.frozen:  # else the batch norm of frozen features would change
            part.eval()
        return self


Model = Classifier
