"""predict.py and tiles: an image for each image, of any size, without seams."""

import io
import pickle
import sys
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
from torch.utils.data import Dataset

import dataset
import options
import predict
from engine import modules
from engine.data.loader import Loader, arrange
from model import Model
from task.tiles import BLEND, apply_in_tiles, ramp, starts


def predicted(checkpoint: Path, *words: str, out: str = "predictions") -> dict[str, np.ndarray]:
    given = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32", *words]
    assert status(predict.main, "predict.py", *given) == 0
    files = sorted(path for path in Path(out).rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): np.asarray(Image.open(path)) for path in files}


def photograph(height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)


def save(image: Tensor, path: str) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def test_an_image_for_each_image(checkpoint: Path, images: Path) -> None:
    Path("folder/deep").mkdir(parents=True)
    save(photograph(33, 47), "folder/0.bmp")
    Image.new("L", (40, 20)).save("folder/deep/A.png")
    Image.new("L", (40, 20)).save("folder/a.jpg")
    Image.new("L", (40, 20)).save("folder/A.png")
    single = str(images / "test" / "0.png")
    words = [single, single, "folder", "--out=there/x"]
    found = predicted(checkpoint, *words, out="there/x")
    assert {*found} == {"0.png", "0.png.png", "0.bmp.png", "A.png", "a.jpg.png", "deep/A.png"}
    assert found["0.bmp.png"].shape == (33, 47, 3)
    model, _ = Model.from_checkpoint(str(checkpoint))
    output = model.translate(dataset.load(single)[None])[0]
    assert found["0.png"].tolist() == output.permute(1, 2, 0).tolist()


def test_workers_change_nothing_and_old_files_are_replaced(checkpoint: Path, images: Path) -> None:
    first = predicted(checkpoint, str(images / "test"))
    Path("predictions/0.png").write_text("old")
    again = predicted(checkpoint, str(images / "test"), "--workers=1")
    assert first.keys() == again.keys() and len(first) == 4
    assert all((first[name] == again[name]).all() for name in first)


@pytest.mark.parametrize(
    ("scale", "size"), [("1", (20, 31)), ("2", (40, 62)), ("4", (80, 124)), ("1.5", (30, 46))]
)
def test_images_are_enlarged_first_if_wanted(
    checkpoint: Path, scale: str, size: tuple[int, int]
) -> None:
    """1.5 x 31 is 46.5, which is rounded to an even number."""
    small = photograph(20, 31)
    save(small, "small.png")
    found = predicted(checkpoint, "small.png", f"--scale={scale}")["small.png"]
    assert found.shape == (*size, 3)
    model, _ = Model.from_checkpoint(str(checkpoint))
    large = needs("task.degradations.enlarge")(small, float(scale))
    assert scale != "1" or large.equal(small)
    device = torch.device("cpu")  # rounding depends on the order in memory: that of predict.py
    (inputs,) = arrange((large[None],), device)
    wanted = modules.place(model, device).eval().translate(inputs)[0]
    assert found.tolist() == wanted.permute(1, 2, 0).tolist()


def test_after_low_resolution_images_are_enlarged_as_in_training(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["args"] |= {"degrade": "low-resolution", "scale": 3.0}
    torch.save(state, "enlarge.pt")
    save(photograph(20, 31), "small.png")
    assert predicted(Path("enlarge.pt"), "small.png")["small.png"].shape == (60, 93, 3)
    found = predicted(Path("enlarge.pt"), "small.png", "--scale=1", "--out=same", out="same")
    assert found["small.png"].shape == (20, 31, 3)


def test_the_images_can_be_sent_to_workers(
    checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are where workers are not forked: on macOS, on Windows, since Python 3.14."""
    sent: list[bool] = []

    class Sending(Loader):
        def __init__(self, dataset: Dataset, *more: Any) -> None:
            super().__init__(pickle.loads(pickle.dumps(dataset)), *more)
            sent.append(True)

    monkeypatch.setattr(predict, "Loader", Sending)
    found = predicted(checkpoint, str(images / "test"), "--scale=2")
    assert {image.shape for image in found.values()} == {(40, 104, 3)}
    assert sent


def test_it_goes_on_past_images_that_cannot_be_read(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names come from standard input, one of which is not there."""
    save(photograph(20, 31), "first.png")
    save(photograph(33, 17), "last one.png")
    Path("bad.png").write_text("no image")
    lines = b"first.png\nbad.png\ngone.png\nlast one.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    words = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32", "-"]
    assert status(predict.main, "predict.py", *words) == 1
    bad, gone, error = capsys.readouterr().err.splitlines()[-3:]
    assert bad.startswith("warning: bad.png: not readable as an image")
    assert gone == "warning: gone.png: no such file"
    assert error == "predict.py: error: 2 of 4 images could not be read"
    written = sorted(path.name for path in Path("predictions").iterdir())
    assert written == ["first.png", "last one.png"]
    alone = predicted(checkpoint, "last one.png", "--out=alone", out="alone")
    with Image.open("predictions/last one.png") as found:
        assert np.asarray(found).tolist() == alone["last one.png"].tolist()


# Tiles.


def translator(**given: Any) -> Model:
    """A model with the generator of this project."""
    torch.manual_seed(0)
    model = Model(options.parse([*example.SMALL, "--losses=l1"]), {})
    model.net = needs("networks.Generator")(**{"width": 4, **given})
    for part in convolutions(model.net):  # more than the little that is added before training
        nn.init.xavier_normal_(part.weight)
    return model.eval()


def test_tiles_of_a_checkpoint_are_its_whole_image(checkpoint: Path) -> None:
    usual_generator()  # without a norm, and with a small receptive field
    save(photograph(150, 203), "large.png")
    whole = predicted(checkpoint, "large.png")["large.png"].astype(int)
    tiled = predicted(checkpoint, "large.png", "--tile=96", "--overlap=32")["large.png"]
    assert np.abs(tiled - whole).max() <= 1


def test_the_options_for_tiles_are_used(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def note(model: Model, inputs: Tensor) -> Tensor:
        sizes.append(tuple(inputs.shape))
        return 255.0 - inputs

    monkeypatch.setattr(Model, "predict", note)
    image = photograph(60, 150)
    save(image, "wide.png")
    for words, wanted in (
        ([], [(1, 3, 60, 150)]),
        (["--tile=96", "--overlap=32"], [(1, 3, 60, 96), (1, 3, 60, 86)]),
    ):
        sizes.clear()
        found = predicted(checkpoint, "wide.png", *words)["wide.png"]
        assert found.tolist() == (255 - image).permute(1, 2, 0).tolist()
        assert sizes == wanted


@pytest.mark.parametrize(
    "given", [{"blocks": 3}, {"n_downsampling": 1, "blocks": 0}, {"dropout": 0.5}], ids=str
)
@pytest.mark.parametrize(("height", "width"), [(97, 130), (64, 300), (229, 96), (96, 96), (20, 30)])
def test_tiles_are_the_whole_image(given: dict[str, Any], height: int, width: int) -> None:
    model, image = translator(norm="none", **given), photograph(height, width)
    whole = model.translate(image[None])[0]
    tiled = apply_in_tiles(model.translate, image, tile=96, overlap=32)
    difference = (tiled.int() - whole.int()).abs()
    assert difference.max() <= 1, "only rounding"
    assert (difference > 0).float().mean() < 0.001


@pytest.mark.parametrize(("height", "width"), [(230, 193), (64, 331)])
def test_tiles_of_unshuffled_layers_are_the_whole_image(height: int, width: int) -> None:
    """The receptive field is twice as wide, and so is the overlap that it takes."""
    model, image = translator(norm="none", unshuffle=2, blocks=3), photograph(height, width)
    whole = model.translate(image[None])[0]
    tiled = apply_in_tiles(model.translate, image, tile=192, overlap=64)
    difference = (tiled.int() - whole.int()).abs()
    assert difference.max() <= 1, "only rounding"
    assert (difference > 0).float().mean() < 0.001


def test_where_statistics_of_a_tile_differ_seams_are_blended() -> None:
    """With instance norm no tile can equal the whole; but there is no step from one to the next."""
    shades = iter([100, 140, 120, 160])

    def translate(images: Tensor) -> Tensor:
        return torch.full_like(images, next(shades))

    row = apply_in_tiles(translate, photograph(10, 160), tile=96, overlap=32)[0, 5].int()
    assert row[:70].eq(100).all() and row[90:].eq(140).all()
    assert row.diff().abs().max() <= 40 // BLEND + 1


@pytest.mark.parametrize("size", [97, 160, 161, 500])
def test_the_weights_of_tiles_add_up_to_one(size: int) -> None:
    total = torch.zeros(size)
    for start in starts(size, 96, 32):
        length = min(96, size - start)
        total[start : start + length] += ramp(start, length, size, 32)
    assert total.allclose(torch.ones(size))
