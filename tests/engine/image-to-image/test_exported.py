"""Exported generators: images of any size, and the same predictions."""

from pathlib import Path
from typing import Any

import example
import numpy as np
import pytest
import torch
from needs import FORMATS, OLD, needs
from ours import convolutions
from PIL import Image
from programs import status
from torch import nn

import export
import options
import predict
from engine.inference.export import LIMIT, compare, convert
from model import Model


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "given",
    [{"padding": "reflect"}, {"n_downsampling": 2, "norm": "instance"}, {"unshuffle": 2}],
    ids=str,
)
def test_generators_take_images_of_any_size(given: dict[str, Any], form: str) -> None:
    """Of the batches that `compare` makes no size can be divided by 4, as the layers need it."""
    torch.manual_seed(0)
    model = Model(options.parse([*example.SMALL, "--losses=l1"]), {})
    model.net = needs("networks.Generator")(**{"width": 4, **given})
    for part in convolutions(model.net):  # more than the little that is added before training
        nn.init.xavier_normal_(part.weight)
    model.eval()
    random = torch.Generator().manual_seed(0)
    images = list(torch.randint(256, (3, 3, 99, 99), generator=random, dtype=torch.uint8))
    content = convert(model, form, None, "{}")
    assert compare(model, content, form, images, vary=True) <= 255 * LIMIT


@pytest.mark.slow
@OLD
def test_predictions_are_those_of_the_checkpoint(finished: Path, images: Path) -> None:
    """Whole and in tiles; a value halfway between two grey levels may be rounded either way."""
    best = finished / "checkpoints" / "best.pt"
    words = [f"--checkpoint={best}", "--format=onnx", "--out=model.onnx"]
    assert status(export.main, "export.py", *words) == 0
    Image.open(images / "test" / "0.png").resize((150, 101)).save("large.png")
    for checkpoint, out in ((str(best), "one"), ("model.onnx", "other")):
        words = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32"]
        words += [f"--out={out}", "--tile=96", "--overlap=32", "large.png", str(images / "test")]
        assert status(predict.main, "predict.py", *words) == 0
    names = [path.relative_to("one") for path in sorted(Path("one").rglob("*.png"))]
    assert len(names) == 5
    for name in names:
        one, other = (np.asarray(Image.open(Path(f, name))).astype(int) for f in ("one", "other"))
        assert one.shape == other.shape and one.std() > 0
        assert np.abs(one - other).max() <= 1
        assert (one != other).mean() < 0.001
