"""Any number of labels for an image; the mean average precision chooses the best."""

from argparse import Namespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import options
from engine.checkpoint import restore
from engine.evaluation import Rows
from engine.report.grids import captioned_grid


class Tagger(nn.Module):
    monitors: ClassVar = {"map": max, "loss": min}

    def __init__(self, opt: Namespace, info: dict[str, Any]) -> None:
        super().__init__()
        self.info, self.k = info, len(info["classes"])
        layers = [nn.Conv2d(3, opt.width, 5, stride=2), nn.ReLU(), nn.AdaptiveMaxPool2d(2)]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * opt.width, self.k))

    @classmethod
    def from_checkpoint(cls, path: str) -> tuple["Tagger", Namespace]:
        return restore(cls, path, options.make_parser())

    @staticmethod
    def for_prediction(opt: Namespace) -> Namespace:
        return opt

    def describe_output(self, opt: Namespace) -> dict[str, Any]:
        output = f"float32 (N, {self.k}), the probability of each label"
        classes = list(self.info["classes"])
        return {"image_size": 16, "output": output, "range": 1, "classes": classes}

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def scores(self, images: Tensor) -> Tensor:
        return self.net(images / 127.5 - 1).float()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        loss = functional.binary_cross_entropy_with_logits(self.scores(images), labels)
        return {"net": {"binary_cross_entropy": loss}}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        return self.scores(images).sigmoid()

    @torch.no_grad()
    def compute_sums(self, images: Tensor, labels: Tensor) -> dict[str, Tensor | Rows]:
        scores = self.scores(images)
        loss = functional.binary_cross_entropy_with_logits(scores, labels) * len(labels)
        return {"loss": loss, "scores": Rows(scores), "labels": Rows(labels)}

    def compute_metrics(self, totals: dict[str, Tensor], images: int) -> dict[str, float]:
        pairs = zip(totals["scores"].T, totals["labels"].T, strict=True)
        found = torch.stack([average_precision(*pair) for pair in pairs])
        return {"loss": float(totals["loss"]) / images, "map": float(found.mean())}

    def image_grid(self, images: Tensor, labels: Tensor) -> Tensor:
        return captioned_grid(images[:4], [""] * len(images[:4]), columns=2)

    def figures(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """The sum of precision times the gain of recall, over all different scores (N,)."""
    values, places = scores.unique(return_inverse=True)
    hits = torch.zeros(len(values)).index_add(0, places, labels).flip(0)
    shown = torch.zeros(len(values)).index_add(0, places, torch.ones(len(places))).flip(0)
    return (hits.cumsum(0) / shown.cumsum(0) * hits).sum() / labels.sum()


Model = Tagger
