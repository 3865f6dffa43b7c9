"""test.py: metrics against scikit-image and by hand, tables, sheets."""

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Train
from pages import check_whole
from PIL import Image
from programs import status
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchvision.transforms.functional import center_crop

import dataset
import options
import test
from engine.report.common import Report
from engine.report.grids import captioned_grid, save_png
from losses import BEST_PSNR
from model import Model
from task.report import _verdict, add_intervals, draw_examples, write_report


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
    assert BEST_PSNR == 100
    assert test.compare(target, target) == {"psnr": BEST_PSNR, "ssim": 1.0, "l1": 0.0}


def test_the_input_has_the_same_metrics_as_the_output() -> None:
    image, target = noisy(3)
    output = target + 1
    row = test.compute_metrics("a.png", image, output, target)
    of_input = {f"input_{name}": value for name, value in test.compare(image, target).items()}
    assert row == {"file": "a.png", **test.compare(output, target), **of_input}


def test_the_validation_of_a_training_computes_the_same(finished: Path) -> None:
    model, _ = Model.from_checkpoint(str(finished / "checkpoints" / "best.pt"))
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(256, (2, 5, 3, 16, 16), generator=random, dtype=torch.uint8)
    targets[2] = model.translate(inputs)[2]  # no error at all
    sums = model.compute_sums(inputs, targets)
    rows = [test.compare(*pair) for pair in zip(model.translate(inputs), targets, strict=True)]
    assert rows[2]["psnr"] == BEST_PSNR
    for name in ("psnr", "l1"):
        wanted = sum(row[name] for row in rows)
        assert sums[name].item() == pytest.approx(wanted, abs=1e-3)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def metrics_of(report: Path) -> dict:
    return json.loads((report / "metrics.json").read_text(encoding="utf-8"))


def test_the_report_lies_in_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--checkpoint={run / 'checkpoints' / 'best.pt'}", "--device=cpu", "--worst=3"]
    assert status(test.main, "test.py", *words) == 0
    metrics = metrics_of(run / "report")
    assert metrics["images"] == len(metrics["by_image"]) == 4
    assert [row["file"] for row in metrics["by_image"]] == [f"{i}.png" for i in range(4)]
    for name in ("psnr", "ssim", "l1", "input_psnr", "input_ssim", "input_l1"):
        assert metrics[name] == pytest.approx(np.mean([r[name] for r in metrics["by_image"]]))
    assert metrics["psnr_gain"] == pytest.approx(metrics["psnr"] - metrics["input_psnr"])
    assert 18 < metrics["input_psnr"] < 23, "noise of 25"
    for name in ("psnr", "ssim", "l1", "psnr_gain"):
        assert metrics[f"{name}_interval"] is None, "too few images"
    page = check_whole((run / "report" / "index.html").read_text(encoding="utf-8"))
    assert {row["file"] for row in metrics["by_image"]} <= set(page.texts)
    assert f"{metrics['psnr']:.2f} dB" in page.texts
    for name in ("best.png", "worst.png"):
        with Image.open(run / "report" / name) as sheet:
            assert 2 * 224 < sheet.height < sheet.width, "two rows of three: no image is in both"
    out = capsys.readouterr().out
    here = os.path.relpath(run / "report")
    assert out.endswith(f"\nwrote {os.path.join(here, 'index.html')}\n")
    assert "0.png" in out and "mean" in out and "gain" in out


@pytest.mark.slow
def test_the_page_of_many_images_is_small(run: Path) -> None:
    """Their names may be hostile; the lowest PSNR comes first."""
    random = torch.Generator().manual_seed(0)
    numbers = torch.rand(10_000, generator=random).tolist()
    names = ("psnr", "ssim", "l1", "input_psnr", "input_ssim", "input_l1")
    rows: list[test.Row] = [
        {"file": f"<script>{i}</script>.png", **dict.fromkeys(names, value)}
        for i, value in enumerate(numbers)
    ]
    crops = torch.randint(256, (3, 3, 224, 224), generator=random, dtype=torch.uint8)  # noise
    examples = [(row, list(crops)) for row in rows[:10]]
    words = ["checkpoint", "report", "against", "data", "split"]
    given = [str(run / "checkpoints/best.pt"), "made-up", None, None, "test"]
    defaults = options.make_parser().defaults()
    model = Namespace(checkpoint={"file": "best.pt", "digest": "sha256:0", "step": 1})
    opt, data = (Namespace(**dict(zip(words, given, strict=True))), Namespace(names=list))
    report = Report(opt, defaults, defaults, model, data)
    metrics = add_intervals(test.summarize(rows))
    for name in ("psnr", "ssim", "l1"):
        low, high = metrics[f"{name}_interval"]
        assert low < metrics[name] < high
    write_report(report, metrics, examples, examples)
    text = Path("made-up/index.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 3_000_000
    page = check_whole(text)
    first = min(range(10_000), key=numbers.__getitem__)
    assert page.texts.index("Images") < page.texts.index(str(rows[first]["file"]))
    assert "The lowest PSNR first; 9800 more images are in metrics.json." in page.texts


def test_equal_values_have_no_interval_without_a_width() -> None:
    """As of an identity: all gains are 0; of perfect outputs: all PSNRs are 100 dB."""
    names = ("psnr", "ssim", "l1", "input_psnr", "input_ssim", "input_l1")
    rows: list[test.Row] = [{"file": str(i), **dict.fromkeys(names, 7.0)} for i in range(12)]
    metrics = add_intervals(test.summarize(rows))
    assert all(metrics[f"{name}_interval"] is None for name in ("psnr", "ssim", "l1", "psnr_gain"))
    shown = "".join(map(str, _verdict(metrics)))
    assert "the mean of 12 images: all are equal: no interval." in shown
    for i, row in enumerate(rows):
        row["psnr"] = 7.0 + i
    metrics = add_intervals(test.summarize(rows))
    assert metrics["ssim_interval"] is None and "95 % interval" in "".join(_verdict(metrics))


@pytest.mark.slow
def test_the_splits_have_reports_of_their_own(train: Train, images: Path) -> None:
    assert train("run", "--val-share=0.4", "--epochs=1") == 0
    everything = {path.name for path in (images / "train").glob("*.png")}
    found: dict[str, list[str]] = {}
    for split in ("val", "train"):
        words = ["--checkpoint=run", "--device=cpu", f"--split={split}"]
        assert status(test.main, "test.py", *words) == 0
        found[split] = [row["file"] for row in metrics_of(Path(f"run/report-{split}"))["by_image"]]
    assert sorted(found["val"] + found["train"]) == sorted(everything)
    assert len(found["val"]) > 1 and len(found["train"]) > 1
    assert not (Path("run/report") / "metrics.json").exists()


def test_a_checkpoint_may_be_moved_and_tested_on_other_images(run: Path) -> None:
    shutil.move(run / "checkpoints" / "best.pt", "moved.pt")
    Path("other/test").mkdir(parents=True)
    for height, width in ((120, 90), (16, 200)):
        Image.effect_noise((width, height), 50).save(f"other/test/{height}.png")
    words = ["--checkpoint=moved.pt", "--data=other", "--device=cpu", "--report=there/x"]
    assert status(test.main, "test.py", *words, "--tile=96", "--overlap=32") == 0
    assert metrics_of(Path("there/x"))["images"] == 2


def test_the_best_come_first_and_the_worst_too(
    finished: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psnr = {"0.png": 20.0, "1.png": 30.0, "2.png": 10.0, "3.png": 30.0}
    compute_metrics, shown = test.compute_metrics, {}

    def with_psnr(file: str, *three: Tensor, span: float) -> test.Row:
        return {**compute_metrics(file, *three, span=span), "psnr": psnr[file]}

    def note(
        report: Any, metrics: Any, best: list[test.Example], worst: list[test.Example]
    ) -> None:
        shown.update({"best.png": best, "worst.png": worst})

    monkeypatch.setattr(test, "compute_metrics", with_psnr)
    monkeypatch.setattr(test, "write_report", note)
    words = [f"--checkpoint={finished}", "--device=cpu", "--worst=4", "--report=r"]
    assert status(test.main, "test.py", *words) == 0
    files = {name: [row["file"] for row, _ in examples] for name, examples in shown.items()}
    assert files == {"best.png": ["1.png", "3.png"], "worst.png": ["2.png", "0.png"]}
    for row, three in [*shown["best.png"], *shown["worst.png"]]:
        target = dataset.load(images / "test" / str(row["file"]))
        assert three[2].equal(center_crop(target, [20])), "of the same image"
        assert [image.shape for image in three] == [(3, 20, 20)] * 3


# Sheets.


def boxes(path: Path, colours: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of the pixels of each colour, which must be a full rectangle."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    found = []
    for colour in colours:
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert len(rows), f"no {colour} in {path}"
        top, bottom = rows.min(), rows.max() + 1
        left, right = columns.min(), columns.max() + 1
        assert len(rows) == (bottom - top) * (right - left), f"{colour} is covered"
        found.append((int(top), int(bottom), int(left), int(right)))
    return found


def plain(colour: tuple[int, int, int], height: int, width: int) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, height, width).clone()


@pytest.mark.parametrize("size", [(16, 16), (90, 60), (224, 224)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_sheet_shows_the_pixels_of_its_images(size: tuple[int, int], count: int) -> None:
    """All of them, in rows of input, output and target; no caption covers them."""
    colours = [(40 * i + 20, 200, 10 * j) for i in range(count) for j in range(3)]
    images = [plain(colour, *size) for colour in colours]
    row: Any = {"psnr": 20.0, "ssim": 0.5, "input_psnr": 10.0, "input_ssim": 0.25}
    examples = [({**row, "file": f"{i}.png"}, images[3 * i : 3 * i + 3]) for i in range(count)]
    save_png(draw_examples(examples), Path("x.png"))
    found = boxes(Path("x.png"), colours)
    for top, bottom, left, right in found:
        assert right - left > 150, "large enough to look at"
        assert (bottom - top) / (right - left) == pytest.approx(size[0] / size[1], abs=0.02)
    for i in range(count):
        first, second, third = found[3 * i : 3 * i + 3]
        assert first[0] == second[0] == third[0], "one row"
        assert first[3] <= second[2] and second[3] <= third[2], "from left to right"
        assert i == 0 or found[3 * i - 1][1] < first[0], "below the row before"


def test_a_small_image_is_shown_pixel_by_pixel() -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 6, 8), generator=random, dtype=torch.uint8)
    save_png(captioned_grid([image], ["a caption"], columns=3), Path("x.png"))
    colours = [tuple(colour) for colour in image.flatten(1).T.tolist()]
    assert len(set(colours)) == 6 * 8
    found = boxes(Path("x.png"), colours)
    for i, (top, _, left, _) in enumerate(found):
        if i % 8:
            assert (top, left) == (found[i - 1][0], found[i - 1][3]), "right of the pixel before"
        elif i:
            assert (top, left) == (found[i - 8][1], found[i - 8][2]), "below the row before"
