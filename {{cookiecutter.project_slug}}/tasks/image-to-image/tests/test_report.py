"""test.py: metrics against scikit-image and by hand, tables, sheets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import status
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

import test
from translator import Translator


def noisy(seed: int) -> tuple[Tensor, Tensor]:
    """A smooth image and the same with noise, of a size of their own."""
    random = torch.Generator().manual_seed(seed)
    height, width = torch.randint(16, 60, (2,), generator=random).tolist()
    y, x = torch.arange(height)[:, None], torch.arange(width)
    target = torch.stack([(x * k + y * seed) % 200 for k in (1, 2, 3)]).float()
    changed = target + torch.randn(target.shape, generator=random) * (seed + 1)
    return changed.round().clamp(0, 255).to(torch.uint8), target.to(torch.uint8)


def test_metrics_agree_with_scikit_image_on_twenty_images() -> None:
    for seed in range(20):
        image, target = noisy(seed)
        found = test.compare(image, target)
        a, b = (part.permute(1, 2, 0).numpy() for part in (target, image))
        assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-4)
        wanted = structural_similarity(
            a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert found["ssim"] == pytest.approx(wanted, abs=1e-4)
        assert found["l1"] == pytest.approx(np.abs(a.astype(int) - b).mean(), abs=1e-4)


def test_metrics_by_hand() -> None:
    target = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    found = test.compare(target + 10, target)
    assert found["l1"] == 10
    assert found["psnr"] == pytest.approx(20 * np.log10(25.5))
    assert test.compare(target, target) == {"psnr": 100.0, "ssim": 1.0, "l1": 0.0}


def test_the_test_pass_of_training_measures_the_same(finished: Path) -> None:
    model, _ = Translator.from_checkpoint(str(finished / "checkpoints" / "best.pt"))
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(256, (2, 5, 3, 16, 16), generator=random, dtype=torch.uint8)
    sums = model.measure(inputs, targets)
    rows = [test.compare(*pair) for pair in zip(model.translate(inputs), targets, strict=True)]
    for name in ("psnr", "l1"):
        wanted = sum(row[name] for row in rows)
        assert sums[name].item() == pytest.approx(wanted, abs=1e-3)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_report_lies_in_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--checkpoint={run / 'checkpoints' / 'best.pt'}", "--device=cpu", "--worst=3"]
    assert status(test.main, "test.py", *words) == 0
    metrics = json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images"] == len(metrics["by_image"]) == 4
    for name in ("psnr", "ssim", "l1", "input_psnr", "input_ssim", "input_l1"):
        assert metrics[name] == pytest.approx(np.mean([r[name] for r in metrics["by_image"]]))
    assert metrics["psnr_gain"] == pytest.approx(metrics["psnr"] - metrics["input_psnr"])
    assert 18 < metrics["input_psnr"] < 23, "noise of 25"
    for name in ("best.png", "worst.png"):
        with Image.open(run / "report" / name) as picture:
            assert picture.width > 3 * 224 and picture.height > 3 * 224
    out = capsys.readouterr().out
    assert str(run / "report") in out
    assert "0.png" in out and "mean" in out and "gain" in out


def test_a_checkpoint_may_be_moved_and_judged_by_other_images(run: Path) -> None:
    shutil.move(run / "checkpoints" / "best.pt", "moved.pt")
    Path("other/test").mkdir(parents=True)
    for height, width in ((120, 90), (16, 200)):
        Image.effect_noise((width, height), 50).save(f"other/test/{height}.png")
    words = ["--checkpoint=moved.pt", "--data=other", "--device=cpu", "--report=there/x"]
    assert status(test.main, "test.py", *words, "--tile=96", "--overlap=32") == 0
    assert json.loads(Path("there/x/metrics.json").read_text())["images"] == 2


def test_the_best_come_first_and_the_worst_too() -> None:
    rows: list[test.Row] = [{"file": str(i), "psnr": p} for i, p in enumerate((20.0, 30.0, 10.0))]
    shown: list[list[str]] = []

    def show(found: list[tuple[test.Row, list[Tensor]]], path: Path) -> None:
        shown.append([str(row["file"]) for row, _ in found])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test, "show", show)
        test.show_extremes(rows, [[], [], []], 2, Path())
    assert shown == [["1", "0"], ["2", "0"]]
