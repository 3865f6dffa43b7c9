"""A class for each pixel; the mean of the classes' intersections over unions chooses the best."""

from argparse import Namespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import options
from engine.checkpoint import restore
from engine.report.grids import captioned_grid


class Segmenter(nn.Module):
    monitors: ClassVar = {"miou": max, "loss": min}

    def __init__(self, opt: Namespace, info: dict[str, Any]) -> None:
        super().__init__()
        self.info, self.k = info, len(info["classes"])
        layers = [nn.Conv2d(3, opt.width, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(opt.width, self.k, 3, padding=1))
        pixels = torch.tensor(info["pixels"], dtype=torch.float32)
        self.register_buffer("weight", pixels.sum() / (self.k * pixels))

    @classmethod
    def from_checkpoint(cls, path: str) -> tuple["Segmenter", Namespace]:
        return restore(cls, path, options.make_parser())

    @staticmethod
    def for_prediction(opt: Namespace) -> Namespace:
        return opt

    def describe_output(self, opt: Namespace) -> dict[str, Any]:
        output = f"float32 (N, {self.k}, H, W), the probability of each class"
        return {"image_size": None, "output": output, "range": 1, "classes": self.info["classes"]}

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def scores(self, images: Tensor) -> Tensor:
        return self.net(images / 127.5 - 1).float()

    def forward(self, images: Tensor, masks: Tensor) -> dict[str, dict[str, Tensor]]:
        scores = self.scores(images)
        loss = functional.cross_entropy(scores, masks[:, 0].long(), self.weight)
        return {"net": {"cross_entropy": loss}}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        return self.scores(images).softmax(dim=1)

    @torch.no_grad()
    def compute_sums(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        scores, masks = self.scores(images), masks[:, 0].long()
        pairs = (masks * self.k + scores.argmax(dim=1)).flatten()
        loss = functional.cross_entropy(scores, masks, reduction="none").mean((1, 2)).sum()
        return {"loss": loss, "confusion": pairs.bincount(minlength=self.k**2)}

    def compute_metrics(self, totals: dict[str, Tensor], images: int) -> dict[str, float]:
        table = totals["confusion"].view(self.k, self.k).double()
        union = table.sum(0) + table.sum(1) - table.diag()
        ratio = table.diag() / union
        return {"loss": float(totals["loss"]) / images, "miou": float(ratio.mean())}

    def image_grid(self, images: Tensor, masks: Tensor) -> Tensor:
        return captioned_grid(images[:4], [""] * len(images[:4]), columns=2)

    def figures(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}


Model = Segmenter
