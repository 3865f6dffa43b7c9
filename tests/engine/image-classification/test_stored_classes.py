"""Classification of images with the channels and the depth of their files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import slow_after
from needs import needs
from programs import last, refusal, resume, same_weights, status, train_refuses

import export
import options
import predict
import test
import train
from model import Model

dataset = needs("dataset")
needs("dataset.ClassFolders")
SMALL = ["--img-size=16", "--width=4", "--blocks=1", "--batch-size=4", "--epochs=2", "--device=cpu"]
SMALL += ["--workers=0", "--no-flip", "--lr=0.01"]


def write_set(folder: Path, channels: int = 5, depth: str = "uint16") -> Path:
    """Images of two classes of noise, of which one is brighter to the right; .npy."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("dark", "slope"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = random.integers(0, 1000, (16, 16, 1)) + np.zeros(channels, int)
                image += (np.arange(16) * 150)[:, None] * (name == "slope")
                image *= 1 + np.arange(channels)
                np.save(folder / split / name / f"{i}.npy", image.astype(depth))
    (folder / "dataset.json").write_text('{"images": "stored", "axes": "YXC"}')
    return folder


def test_five_channels_from_training_to_onnx(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--data={write_set(Path('data'))}", *SMALL, "--save-every=3"]
    assert status(train.main, "train.py", *words, "--run-dir=whole") == 0
    assert "5 channels of uint16" in capsys.readouterr().out
    assert status(train.main, "train.py", *words, "--run-dir=run", "--epochs=1") == 0
    assert resume(Path("run"), "--epochs=2", "--cache=off") == 0
    info = last(Path("whole"))["info"]
    assert (info["channels"], info["depth"]) == (5, "uint16")
    assert info["mean"]["channel 5"] == pytest.approx(5 * info["mean"]["channel 1"])
    assert status(test.main, "test.py", "--checkpoint=whole", "--device=cpu") == 0
    assert json.loads(Path("whole/report/metrics.json").read_text())["images"] == 8
    found = {}
    words = ["--checkpoint=whole", "--format=onnx", "--out=model.onnx"]
    assert status(export.main, "export.py", *words) == 0
    for model in ("whole", "model.onnx"):
        words = [f"--checkpoint={model}", "--precision=fp32", "data/test", "--out=table.csv"]
        assert status(predict.main, "predict.py", *words) == 0
        rows = [line.split(",") for line in Path("table.csv").read_text().splitlines()[1:]]
        found[model] = {row[0]: (row[1], pytest.approx(float(row[2]), abs=1e-4)) for row in rows}
    assert found["whole"] == found["model.onnx"] and len(rows) == 8
    np.save("grey.npy", np.zeros((16, 16, 1), np.uint8))
    words = ["--checkpoint=whole", "--device=cpu", "grey.npy"]
    line = refusal(capsys, predict.main, "predict.py", *words)
    assert "has 1 channel of uint8, and those of the training 5 channels of uint16" in line


def test_a_run_is_the_same_without_the_cache_and_with_workers() -> None:
    words = [f"--data={write_set(Path('data'), 2, 'float32')}", *SMALL, "--resize=crop"]
    words += ["--erasing=0.5", "--mixup=0.2", "--shift=1", "--flip"]
    for run, more in (("a", ["--cache=on"]), ("b", ["--cache=off"])):
        assert status(train.main, "train.py", *words, f"--run-dir={run}", *more) == 0
    assert same_weights(Path("a"), Path("b"))


def test_colour_rgb_of_eight_bits_stored_is_what_it_was(images: Path) -> None:
    words = [f"--data={images}", *SMALL]
    assert status(train.main, "train.py", *words, "--run-dir=rgb") == 0
    assert status(train.main, "train.py", *words, "--run-dir=own", "--images=stored") == 0
    assert same_weights(Path("rgb"), Path("own"))
    assert "images" not in Path("rgb/config.txt").read_text().replace(str(images), "")


def test_what_needs_colours_is_refused_for_others(capsys: pytest.CaptureFixture[str]) -> None:
    data = f"--data={write_set(Path('data'))}"
    for flag in ("--trivial-augment", "--color-jitter=0.1"):
        line = train_refuses(capsys, data, *SMALL, flag)
        assert f"{flag.split('=')[0]}: changes the colours of RGB of 8 bits" in line
    np.save("data/train/dark/other.npy", np.zeros((9, 9, 2), np.uint16))
    for cache in ("on", "off"):
        line = train_refuses(capsys, data, *SMALL, f"--cache={cache}")
        assert "dark/other.npy: has 2 channels of uint16, and data/train/dark/0.npy 5" in line
    line = train_refuses(capsys, data, *SMALL, "--images=rgb", "--axes=YXC")
    assert "--axes YXC: is for --images stored" in line


@pytest.mark.parametrize("network", slow_after(3, ["simple", "resnet9", "resnet18", "googlenet"]))
def test_networks_take_any_number_of_channels(network: str) -> None:
    opt = options.parse([f"--network={network}", "--img-size=32", "--width=4", "--no-flip"])
    means = {f"channel {i}": float(i) for i in range(4)}
    info = {"classes": {"a": 2, "b": 3}, "channels": 4, "depth": "uint16"}
    model = Model(opt, {**info, "mean": means, "std": dict.fromkeys(means, 2.0)}).eval()
    images = 5 * torch.rand(2, 4, 32, 32)
    assert model.scores(images).shape == (2, 2)
    normalised = model.normalize(images)
    assert normalised[:, 3].allclose((images[:, 3] - 3) / 2, atol=1e-6)
    assert model.image_grid(images, torch.tensor([0, 1])).shape[0] == 3
