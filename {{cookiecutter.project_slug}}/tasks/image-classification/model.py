"""The finished model: a network, its loss and its metrics.

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
    loss_of_a_guess()           optional: {loss name: what an untrained network should have}
    monitors                    {metric name: max or min}: what may decide which checkpoint is best,
                                the first one if --monitor names none
    image_grid(*batch)          an image of a batch for TensorBoard: uint8 (3, H, W)
    figures(totals)             {name: image} for TensorBoard, uint8 (3, H, W), from the same totals
    describe_output(opt)        what export.py writes into a file for those who run it
    for_prediction(opt)         the options for a model that is not trained any more

and for the other programs: from_checkpoint(path), scores(images), predict(images), classes.
"""

import math
from argparse import Namespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import losses
import networks
import options
from engine import modules
from engine.checkpoint import restore
from engine.data.stored import RGB, trained_form
from engine.errors import BadInput
from engine.evaluation import means
from engine.report import grids
from layers import Normalize
from task.augmentation import check_eval_size
from task.classes import count_confusion, label_captions
from task.neighbours import Batch, first_look
from task.preprocessing import settings


class Classifier(nn.Module):
    """Predicts the class of an image.

    Called with a batch it returns the losses of its network: `{"net": {"cross_entropy": scalar}}`.

    Args:
        opt: The options of training; here alone they become a network and a loss.
        info: Of the training data: "classes", with the number of images of each; with `--images
            stored` engine.data.stored.facts.

    Shape: images (N, C, H, W) uint8, or float32 in the same unit; labels (N,) int64 in [0, K), or
        the share of each class, (N, K) float32 -> the losses.

    Raises:
        BadInput: The options name an unknown network.
    """

    monitors: ClassVar = {"accuracy": max, "loss": min}

    def __init__(self, opt: Namespace, info: dict[str, Any]) -> None:
        super().__init__()
        self.info = info  # kept in checkpoints, to build the model again
        self.classes = list(info["classes"])
        if opt.pretrained and opt.network in networks.NETWORKS:
            known = "has no ImageNet weights; use --network resnet18, say"
            raise BadInput(f"--pretrained: {opt.network} {known}")
        self.form = trained_form(info) or RGB
        spec = networks.make_network(opt, len(self.classes), self.form.channels)
        self.net = spec.network
        check_eval_size(opt, self.net, self.form.channels)
        how = settings(opt)
        self.normalize = Normalize(how.get("mean", spec.mean), how.get("std", spec.std))
        if not self.form.is_rgb:
            mean, std = (tuple(info[name].values()) for name in ("mean", "std"))
            self.normalize = Normalize(mean, std, most=1)
        if self.form.depth != "uint8":
            modules.in_float32(self.net)
        self.criterion = losses.make_loss(opt, list(info["classes"].values()))
        self.loss_name = opt.loss.replace("-", "_")

    @classmethod
    def from_checkpoint(cls, path: str) -> tuple["Classifier", Namespace]:
        """As engine.checkpoint.restore."""
        return restore(cls, path, options.make_parser())

    @staticmethod
    def for_prediction(opt: Namespace) -> Namespace:
        """No weights of ImageNet need to be downloaded for those of a checkpoint."""
        return Namespace(**{**vars(opt), "pretrained": False})

    def describe_output(self, opt: Namespace) -> dict[str, Any]:
        """See engine.inference.export.describe; and the classes, in the order of the outputs."""
        return {
            "image_size": opt.val_img_size or opt.img_size,
            "output": f"float32 (N, {len(self.classes)}), the probability of each class",
            "range": 1,
            "classes": self.classes,
            "resize": opt.resize,
            **settings(opt),
            **{k: v for k, v in self.info.items() if k != "classes"},
        }

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the name of their attribute."""
        return {"net": self.net}

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        return {"net": {self.loss_name: self.criterion(self.scores(images), labels)}}

    def scores(self, images: Tensor) -> Tensor:
        """The score (logit) of each class, (N, K) float32: of images, or of features (N, D)."""
        return self.net(images if images.dim() == 2 else self.normalize(images)).float()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The probability of each class, which exported files give too: as `scores`."""
        return self.scores(images).softmax(dim=1)

    @torch.no_grad()
    def compute_sums(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the metrics are made of, added over the images of a batch."""
        scores = self.scores(images)
        return {
            "loss": self.criterion(scores, labels) * len(labels),
            "accuracy": (scores.argmax(dim=1) == labels).sum(),
            "confusion": count_confusion(scores, labels),
        }

    def judge_features(self, train: Batch, val: Batch) -> str:
        """What the features of training and validation give before any training, in words."""
        return first_look(train, val, len(self.classes))

    def loss_of_a_guess(self) -> dict[str, float]:
        """The loss if all classes are equally likely, which a new network should be near."""
        return {"cross_entropy": math.log(len(self.classes))}

    def compute_metrics(self, totals: dict[str, Tensor], images: int) -> dict[str, float]:
        """The mean loss, and the share of images whose highest score is that of their class."""
        return means(totals, images)

    def figures(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The confusion matrix, as an image for TensorBoard."""
        title = "row: true class, column: predicted, in the same order"
        return {"confusion": grids.draw_counts(totals["confusion"], self.classes, title)}

    def image_grid(self, images: Tensor, labels: Tensor, shown: Tensor | None = None) -> Tensor:
        """Up to 64 images with classes, also wrong ones; `shown` if `images` are their features."""
        shown = images if shown is None else shown
        columns = grids.grid_columns(shown)
        images, labels, shown = (part[: columns**2] for part in (images, labels, shown))
        shown = grids.as_rgb(shown, self.form.depth != "uint8")
        predicted = None if self.training else self.scores(images).argmax(dim=1)
        captions = label_captions(labels, self.classes, predicted)
        return grids.captioned_grid(shown, captions, columns)


Model = Classifier
