"""Exported classifiers: several kinds of networks, and the same predictions."""

import csv
from pathlib import Path

import pytest
import torch
from needs import FORMATS, OLD, needs
from programs import status
from torch import nn
from torchvision.models import VisionTransformer

import export
import options
import predict
from engine.inference.export import LIMIT, compare, convert
from model import Model

INFO = {"classes": {"a": 1, "b": 1, "c": 1}}


def random_images(side: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return list(torch.randint(256, (17, 3, side, side), generator=random, dtype=torch.uint8))


def make_network(name: str) -> nn.Module:
    """A small relative of the networks of torchvision that are trained most."""
    if name == "vit":
        return VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=3)
    return needs("task.libraries.make")(name, 3, pretrained=False, dropout=0, size=64)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_networks_of_torchvision(name: str, form: str) -> None:
    torch.manual_seed(0)
    model = Model(options.parse(["--img-size=64"]), INFO)
    model.net = make_network(name)
    for part in model.modules():  # as trained: no weights of 0 that hide the layers before them
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.2)
    model.eval()
    assert model.predict(torch.stack(random_images(64)[:5])).std() > 0.01
    content = convert(model, form, 64, "{}")
    assert compare(model, content, form, random_images(64), vary=False) <= LIMIT


@pytest.mark.slow
@OLD
def test_predictions_are_those_of_the_checkpoint(finished: Path, images: Path) -> None:
    best = finished / "checkpoints" / "best.pt"
    words = [f"--checkpoint={best}", "--format=onnx", "--out=model.onnx"]
    assert status(export.main, "export.py", *words) == 0
    tables = []
    for checkpoint in (str(best), "model.onnx"):
        words = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32", "--top=3"]
        words += ["--batch-size=5", str(images / "test")]
        assert status(predict.main, "predict.py", *words) == 0
        with open("predictions.csv", encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == 12
    for one, other in zip(*tables, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name.startswith("probability"):
                assert float(one[name]) == pytest.approx(float(other[name]), abs=2e-6)
            else:
                assert one[name] == other[name]
