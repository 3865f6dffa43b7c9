"""Tiles: what the whole image would give, or a line that says that it is not."""

import json
import random
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import example
import numpy as np
import pytest
import torch
from needs import needs
from ours import convolutions, usual_generator
from PIL import Image
from programs import status
from torch import Tensor, nn

import options
import predict
import test
from engine.errors import BadInput, Fault
from model import Model
from task import tiles
from task.tiles import BLEND, InTiles, apply_in_tiles, measure_reach, ramp, starts

CPU = torch.device("cpu")


def photograph(height: int, width: int) -> Tensor:
    """Noise that gets brighter from left to right: no part is like the whole."""
    source = torch.Generator().manual_seed(1)
    noise = torch.randint(100, (3, height, width), generator=source, dtype=torch.uint8)
    return noise + torch.linspace(0, 150, width).to(torch.uint8)


def translator(net: nn.Module | None = None, **given: Any) -> Model:
    """A model with the generator of this project, or with another network."""
    torch.manual_seed(0)
    model = Model(options.parse([*example.SMALL, "--losses=l1"]), {})
    model.net = net or needs("networks.Generator")(**{"width": 4, **given})
    for part in convolutions(model.net):  # more than the little that is added before training
        nn.init.xavier_normal_(part.weight)
    return model.eval()


def in_tiles(model: Model, tile: int | None = None, overlap: int | None = None) -> InTiles:
    return InTiles(model.predict, Namespace(tile=tile, overlap=overlap))


def differences(model: Model, image: Tensor, tile: int, overlap: int) -> Tensor:
    """Between the outputs of tiles and of the whole image, both rounded."""
    tiled, seam = apply_in_tiles(model.predict, image, tile, overlap)
    assert seam < 1
    return (tiled.round() - model.translate(image[None])[0].float()).abs()


@pytest.mark.parametrize(
    "given", [{"blocks": 3}, {"n_downsampling": 1, "blocks": 0}, {"dropout": 0.5}], ids=str
)
@pytest.mark.parametrize(("height", "width"), [(97, 130), (64, 300), (229, 96), (96, 96), (20, 30)])
def test_tiles_are_the_whole_image(given: dict[str, Any], height: int, width: int) -> None:
    difference = differences(translator(norm="none", **given), photograph(height, width), 96, 32)
    assert difference.max() <= 1, "only rounding"
    assert (difference > 0).float().mean() < 0.001


@pytest.mark.parametrize(("height", "width"), [(230, 193), (64, 331)])
def test_tiles_of_unshuffled_layers_are_the_whole_image(height: int, width: int) -> None:
    """The receptive field is twice as wide, and so is the overlap that it takes."""
    model, image = translator(norm="none", unshuffle=2, blocks=3), photograph(height, width)
    difference = differences(model, image, 192, 64)
    assert difference.max() <= 1, "only rounding"
    assert (difference > 0).float().mean() < 0.001


class Attention(nn.Module):
    """Weighs the channels by their means over the whole image (Hu et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(dim=(2, 3), keepdim=True).sigmoid()


class Stretch(nn.Module):
    """Gives every image the same contrast."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)


def convolved(*more: nn.Module, dilation: int = 1) -> nn.Module:
    first = nn.Conv2d(3, 8, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(first, *more, nn.Conv2d(8, 3, 3, padding=1))


NETWORKS: dict[str, Callable[[], Model]] = {
    "plain": lambda: translator(norm="none"),
    "batch": lambda: translator(norm="batch", n_downsampling=2),
    "halved 4 times": lambda: translator(norm="none", n_downsampling=4, blocks=1),
    "unshuffled": lambda: translator(norm="none", unshuffle=4, n_downsampling=1),
    "instance": lambda: translator(norm="instance"),
    "instance, halved": lambda: translator(norm="instance", n_downsampling=2, padding="reflect"),
    "pooled": lambda: translator(convolved(Attention())),
    "group": lambda: translator(convolved(nn.GroupNorm(2, 8))),
    "stretched": lambda: translator(convolved(Stretch())),
    "far": lambda: translator(convolved(dilation=100)),
    "far enough": lambda: translator(convolved(dilation=40)),
    "statistics of the batch": lambda: translator(
        convolved(nn.BatchNorm2d(8, track_running_stats=False))
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_gives_what_it_gives_for_the_whole_image(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default; with tiles that are forced on it, or else a line says by how much they differ."""
    monkeypatch.setattr(tiles, "TILE", 192)
    draw, model = random.Random(name), NETWORKS[name]()
    image = photograph(draw.randint(20, 200), draw.randint(193, 420))
    whole = model.predict(image[None])[0]
    chosen = in_tiles(model)
    assert (chosen(image, "x.png") - whole).abs().max() <= 1
    chosen.warn()
    assert capsys.readouterr().err == ""
    forced = in_tiles(model, 96 + 32 * draw.randint(0, 2))
    difference = (forced(image, "x.png") - whole).abs().max()
    forced.warn()
    said = capsys.readouterr().err
    assert difference <= 1 or "x.png: tiles differ by up to" in said
    side = -(-image.shape[2] // 32) * 32
    assert not said or f"--tile {side} takes whole images" in said
    assert in_tiles(model, side)(image, "x.png").equal(whole)


def test_how_far_a_network_sees() -> None:
    def shifted(images: Tensor) -> Tensor:
        return images.float().roll(-40, 3)

    assert measure_reach(shifted, 64, CPU) == 40
    for dilation in (1, 20, 60):
        model = translator(convolved(dilation=dilation))
        assert 0 <= dilation + 1 - measure_reach(model.predict, 64, CPU) <= 1
    assert measure_reach(translator(norm="instance").predict, 64, CPU) == 64
    assert measure_reach(lambda images: 255.0 - images, 64, CPU) == 0


def test_classes_are_never_blended() -> None:
    """A pixel between class 0 and class 4 is not of class 2: scores are blended."""
    image = photograph(40, 150)

    def classify(images: Tensor) -> Tensor:
        return scores(images).argmax(dim=1, keepdim=True)

    def scores(images: Tensor) -> Tensor:
        return torch.cat([images.float(), 255.0 - images], dim=1)

    with pytest.raises(TypeError, match="return scores"):
        apply_in_tiles(classify, image, 96, 32)
    blended, _ = apply_in_tiles(scores, image, 96, 32)
    assert blended.shape == (6, 40, 150)
    assert blended.argmax(dim=0, keepdim=True).equal(classify(image[None])[0])


def test_where_tiles_differ_seams_are_blended() -> None:
    """With instance norm no tile can equal the whole; but there is no step from one to the next."""
    shades = iter([100, 140, 120, 160])

    def translate(images: Tensor) -> Tensor:
        return torch.full(images.shape, float(next(shades)))

    output, difference = apply_in_tiles(translate, photograph(10, 160), tile=96, overlap=32)
    row = output[0, 5].round()
    assert row[:70].eq(100).all() and row[90:].eq(140).all()
    assert row.diff().abs().max() <= 40 // BLEND + 1
    assert difference == 40


@pytest.mark.parametrize("size", [97, 160, 161, 500])
def test_the_weights_of_tiles_add_up_to_one(size: int) -> None:
    total = torch.zeros(size)
    for start in starts(size, 96, 32):
        length = min(96, size - start)
        total[start : start + length] += ramp(start, length, size, 32)
    assert total.allclose(torch.ones(size))


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (RuntimeError("CUDA out of memory. Tried"), Fault, "150 x 20 pixels; try --tile 96"),
        (MemoryError(), Fault, "x.png: out of memory for 150 x 20 pixels"),
        (OSError("Failed to allocate memory for requested"), Fault, "x.png: out of memory"),
        (RuntimeError("Padding size should be less than the"), BadInput, "too few for this"),
        (ValueError(), ValueError, "^$"),
    ],
    ids=str,
)
def test_what_the_network_raises(error: Exception, kind: type, line: str) -> None:
    def fail(images: Tensor) -> Tensor:
        raise error

    with pytest.raises(kind, match=line):
        InTiles(fail, Namespace(tile=192, overlap=None))(photograph(20, 150), "x.png")


# With the programs.


def predicted(checkpoint: Path, *words: str) -> np.ndarray:
    given = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32", "large.png", *words]
    assert status(predict.main, "predict.py", *given) == 0
    return np.asarray(Image.open("predictions/large.png")).astype(int)


def save(image: Tensor) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save("large.png")


def test_tiles_of_a_checkpoint_are_its_whole_image(checkpoint: Path) -> None:
    usual_generator()  # without a norm, and with a small receptive field
    save(photograph(150, 203))
    whole = predicted(checkpoint)
    assert np.abs(predicted(checkpoint, "--tile=96", "--overlap=32") - whole).max() <= 1


@pytest.mark.slow
def test_the_options_for_tiles_are_used(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def note(model: Model, inputs: Tensor) -> Tensor:
        sizes.append(tuple(inputs.shape))
        return 255.0 - inputs

    monkeypatch.setattr(Model, "predict", note)
    image = photograph(60, 150)
    save(image)
    for words, wanted in (
        ([], [(1, 3, 60, 150)]),
        (["--tile=96", "--overlap=32"], [(1, 3, 60, 96), (1, 3, 60, 86)]),
    ):
        sizes.clear()
        assert predicted(checkpoint, *words).tolist() == (255 - image).permute(1, 2, 0).tolist()
        assert sizes == wanted


@pytest.mark.slow
def test_numbers_of_tiles_that_differ_say_so(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a warning, in metrics.json and on the page; the whole image is used by default."""
    monkeypatch.setattr(tiles, "TILE", 96)
    monkeypatch.setattr(
        Model, "predict", lambda model, inputs: inputs * (inputs.float().mean() / 255)
    )
    Path("data/test").mkdir(parents=True)
    save(photograph(20, 150))
    Path("large.png").rename("data/test/large.png")
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "--data=data", "--report=r"]
    for more, said in (([], False), (["--tile=96"], True)):
        assert status(test.main, "test.py", *words, *more) == 0
        warned = capsys.readouterr().err
        assert ("warning: large.png: tiles differ by up to" in warned) == said
        metrics = json.loads(Path("r/metrics.json").read_text())
        assert (metrics["tiles_differ_by"] > 1) == said
        assert ("Tiles differ by up to" in Path("r/index.html").read_text("utf-8")) == said
