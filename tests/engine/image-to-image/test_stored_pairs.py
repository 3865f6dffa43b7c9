"""Image-to-image with the channels and the depth of the files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import slow_after
from needs import needs
from PIL import Image
from programs import last, status, train_refuses

import export
import predict
import test
import train
from engine.data.stored import read_stored
from model import Model

needs("dataset.Pairs")
SMALL = ["--img-size=16", "--width=4", "--blocks=1", "--batch-size=4", "--epochs=1", "--crops=3"]
D = ["--losses=l1,adversarial", "--d-width=4", "--d-layers=2", "--d-scales=2", "--pool=3"]
SMALL += ["--losses=l1", "--device=cpu", "--workers=0", "--flip", "--turn"]


def draw(random: np.random.Generator, channels: int) -> np.ndarray:
    """An image of 12 bits (24, 40, C) with a slope."""
    steep = random.uniform(20, 60, (2, channels))
    y, x = np.mgrid[:24, :40]
    return (y[..., None] * steep[0] + x[..., None] * steep[1] + 100).astype(np.uint16)


def write_photos(folder: Path, depth: str) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            grey = draw(random, 1)[..., 0].astype(depth)
            Image.fromarray(grey / np.float32(4095) if depth == "float32" else grey).save(
                folder / split / f"{i}.tif"
            )
    return folder


@pytest.mark.parametrize("depth", slow_after(1, ["uint16", "float32"]))
def test_outputs_have_the_depth_of_the_targets(depth: str) -> None:
    words = [f"--data={write_photos(Path('data'), depth)}", "--images=stored", *SMALL]
    assert status(train.main, "train.py", *words, "--run-dir=run", *D) == 0
    info = last(Path("run"))["info"]
    assert (info["channels"], info["depth"]) == (1, depth)
    assert info["high"] == 4095 if depth == "uint16" else 0 < info["low"] < info["high"] < 1
    assert status(test.main, "test.py", "--checkpoint=run", "--device=cpu") == 0
    metrics = json.loads(Path("run/report/metrics.json").read_text())
    # Noise of 25 of 255 grey levels of the range has this PSNR in whatever unit.
    assert metrics["input_psnr"] == pytest.approx(20 * np.log10(255 / 25), abs=0.6)
    words = ["--checkpoint=run", "--device=cpu", "data/test"]
    assert status(predict.main, "predict.py", *words) == 0
    assert status(predict.main, "predict.py", *words) == 0, "its own outputs are replaced"
    output = read_stored(f"predictions/0.{'png' if depth == 'uint16' else 'tif'}")
    assert str(output.dtype).endswith(depth) and len(output.float().unique()) > 256
    words = ["--checkpoint=run", "--format=pt2", "--out=model.pt2"]
    assert status(export.main, "export.py", *words) == 0


def test_pairs_of_six_channels() -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for side in "AB":
            Path("data", split, side).mkdir(parents=True)
        for i in range(3):
            image = draw(random, 6)
            np.save(f"data/{split}/A/{i}.npy", image)
            np.save(f"data/{split}/B/{i}.npy", image // 2)
    words = ["--data=data", "--images=stored", "--axes=YXC", *SMALL, "--run-dir=run"]
    assert status(train.main, "train.py", *words) == 0
    assert status(test.main, "test.py", "--checkpoint=run", "--device=cpu") == 0
    words = ["--checkpoint=run", "--device=cpu", "data/test/A"]
    assert status(predict.main, "predict.py", *words) == 0
    with Image.open("predictions/0.tif") as file:
        assert getattr(file, "n_frames", 1) == 6 and np.asarray(file).dtype == np.uint16
    model, _ = Model.from_checkpoint("run/checkpoints/best.pt")
    shown = torch.from_numpy(draw(random, 6).astype(np.float32)).permute(2, 0, 1)[None]
    assert model.image_grid(shown, shown / 2).shape[0] == 3


def test_pairs_of_unlike_depth_and_what_needs_colours_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_photos(Path("data"), "uint16")
    words = [f"--data={data}", "--images=stored", *SMALL]
    line = train_refuses(capsys, *words, "--degrade=edges")
    assert "--degrade edges: is for three channels, and" in line
    Image.new("L", (40, 24)).save(data / "train" / "8.tif")
    line = train_refuses(capsys, *words)
    assert "8.tif: has 1 channel of uint8, and data/train/0.tif 1 channel of uint16" in line
