"""predict.py and tiles: an image for each image, of any size, without seams."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import status
from torch import Tensor, nn

import data
import options
import predict
from tiles import BLEND, in_tiles, ramp, starts
from translator import Translator


def predicted(checkpoint: Path, *words: str, out: str = "predictions") -> dict[str, np.ndarray]:
    given = [f"--checkpoint={checkpoint}", "--device=cpu", "--precision=fp32", *words]
    assert status(predict.main, "predict.py", *given) == 0
    return {path.name: np.asarray(Image.open(path)) for path in sorted(Path(out).iterdir())}


def translator(*words: str) -> Translator:
    torch.manual_seed(0)
    opt = options.parse(["--flip", "--losses=l1", "--width=4", *words])
    model = Translator(opt, {})
    for part in model.net.modules():  # more than the little that is added before training
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_normal_(part.weight)
    return model.eval()


def photograph(height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)


def test_an_image_for_each_image(checkpoint: Path, images: Path) -> None:
    Path("folder/deep").mkdir(parents=True)
    Image.fromarray(photograph(33, 47).permute(1, 2, 0).numpy()).save("folder/0.bmp")
    Image.new("L", (40, 20)).save("folder/deep/A.png")
    Image.new("L", (40, 20)).save("folder/a.jpg")
    single = str(images / "test" / "0.png")
    found = predicted(checkpoint, single, "folder", "--out=there/x", out="there/x")
    assert list(found) == ["0-2.png", "0.png", "A-2.png", "a.png"]
    assert found["0-2.png"].shape == (33, 47, 3)
    model, _ = Translator.from_checkpoint(str(checkpoint))
    drawn = model.translate(data.load(single)[None])[0]
    assert found["0.png"].tolist() == drawn.permute(1, 2, 0).tolist()


def test_workers_change_nothing_and_old_files_are_replaced(checkpoint: Path, images: Path) -> None:
    first = predicted(checkpoint, str(images / "test"))
    Path("predictions/0.png").write_text("old")
    again = predicted(checkpoint, str(images / "test"), "--workers=1")
    assert first.keys() == again.keys() and len(first) == 4
    assert all((first[name] == again[name]).all() for name in first)


def test_tiles_of_a_checkpoint_are_its_whole_image(checkpoint: Path) -> None:
    Image.fromarray(photograph(150, 203).permute(1, 2, 0).numpy()).save("large.png")
    whole = predicted(checkpoint, "large.png")["large.png"].astype(int)
    tiled = predicted(checkpoint, "large.png", "--tile=96", "--overlap=32")["large.png"]
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("words", [["--blocks=3"], ["--downs=1", "--blocks=0"], ["--dropout=0.5"]])
@pytest.mark.parametrize(("height", "width"), [(97, 130), (64, 300), (229, 96), (96, 96), (20, 30)])
def test_tiles_are_the_whole_image(words: list[str], height: int, width: int) -> None:
    model, image = translator("--norm=none", *words), photograph(height, width)
    whole = model.translate(image[None])[0]
    tiled = in_tiles(model.translate, image, tile=96, overlap=32)
    difference = (tiled.int() - whole.int()).abs()
    assert difference.max() <= 1, "only rounding"
    assert (difference > 0).float().mean() < 0.001


def test_where_statistics_of_a_tile_differ_seams_are_blended() -> None:
    """With instance norm no tile can equal the whole; but there is no step from one to the next."""
    shades = iter([100, 140, 120, 160])

    def draw(images: Tensor) -> Tensor:
        return torch.full_like(images, next(shades))

    row = in_tiles(draw, photograph(10, 160), tile=96, overlap=32)[0, 5].int()
    assert row[:70].eq(100).all() and row[90:].eq(140).all()
    assert row.diff().abs().max() <= 40 // BLEND + 1


@pytest.mark.parametrize("size", [97, 160, 161, 500])
def test_the_weights_of_tiles_add_up_to_one(size: int) -> None:
    total = torch.zeros(size)
    for start in starts(size, 96, 32):
        length = min(96, size - start)
        total[start : start + length] += ramp(start, length, size, 32)
    assert total.allclose(torch.ones(size))
