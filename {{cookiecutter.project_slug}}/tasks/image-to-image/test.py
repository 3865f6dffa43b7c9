"""Judges a checkpoint by the test images: PSNR, SSIM and L1, the best and the worst of them.

python test.py --checkpoint runs/a/checkpoints/best.pt
python test.py --checkpoint best.pt --data my_images --report my_report
"""

import engine.interrupt  # noqa: F401  first, so that Ctrl-C ends in one line from here on

# isort: split
import json
from pathlib import Path

from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchvision.transforms.functional import center_crop
from tqdm import tqdm

import data
from engine import devices
from engine.arguments import Parser, add_machine_options, add_test_options, number
from engine.errors import DONE, run_program
from engine.loading import Loader
from engine.order import TestOrder
from engine.pictures import save_sheet
from engine.precision import Precision
from engine.runfolder import report_folder
from tiles import add_tile_options, check_tiles, in_tiles
from translator import BEST_PSNR, Translator

SHOWN = 224  # pixels of an image that a sheet shows, from its middle
Row = dict[str, str | float]  # the metrics of an image


def main() -> int:
    parser = Parser(description="Judges a checkpoint by the test part of a data set.")
    add_test_options(parser)
    add = parser.add_argument
    add("--worst", type=number(int, 1), default=4, help="images in best.png and in worst.png")
    add_tile_options(parser)
    add_machine_options(parser)
    opt = parser.parse_args()

    # 1. The trained model, and the test part of its data.
    check_tiles(opt.tile, opt.overlap)
    device = devices.pick_device(opt.device)
    precision = Precision(opt.precision, device)
    model, trained_with = Translator.from_checkpoint(opt.checkpoint)
    devices.place(model, device)
    trained_with.data = opt.data or trained_with.data
    test_set = data.whole_part(trained_with)
    loader = Loader(test_set, TestOrder(len(test_set), 1), device, opt.workers, opt.prefetch)
    report = report_folder(opt.report, opt.checkpoint)

    # 2. What is drawn of each image, and how far it is from the target.
    rows: list[Row] = []
    triples: list[list[Tensor]] = []
    bar = tqdm(test_set.names(), desc="test", disable=None)
    with loader.batches() as batches, precision.autocast():
        for name, (inputs, targets) in zip(bar, batches, strict=True):
            output = in_tiles(model.translate, inputs[0], opt.tile, opt.overlap)
            images = [image.cpu() for image in (inputs[0], output, targets[0])]
            rows.append(judge(name, *images))
            side = min(SHOWN, *output.shape[1:])
            triples.append([center_crop(image, [side]) for image in images])

    # 3. What it says.
    metrics = summarize(rows)
    text = json.dumps(metrics, indent=2)
    (report / "metrics.json").write_text(text + "\n", encoding="utf-8")
    show_extremes(rows, triples, opt.worst, report)
    print(table(metrics))
    print(f"wrote {report}: metrics.json, best.png, worst.png")
    return DONE


def judge(name: str, given: Tensor, output: Tensor, target: Tensor) -> Row:
    """The metrics of an output, and of the input as if it were one: uint8 (3, H, W) each."""
    pairs = (("", output), ("input_", given))
    metrics = {
        prefix + metric: value
        for prefix, image in pairs
        for metric, value in compare(image, target).items()
    }
    return {"file": name, **metrics}


def compare(image: Tensor, target: Tensor) -> dict[str, float]:
    """How near an image is to its target, both uint8 (3, H, W) of at least 11 x 11 pixels.

    Returns:
        psnr: in dB, at most 100. ssim: at most 1, with the Gaussian window of Wang et al. 2004.
        l1: the mean absolute difference, in grey levels of 0 to 255.
    """
    a, b = target.numpy(), image.numpy()
    same = bool((a == b).all())
    psnr = BEST_PSNR if same else peak_signal_noise_ratio(a, b, data_range=255)
    ssim = structural_similarity(
        a,
        b,
        channel_axis=0,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    l1 = (target.float() - image.float()).abs().mean()
    return {"psnr": min(BEST_PSNR, float(psnr)), "ssim": float(ssim), "l1": float(l1)}


def summarize(rows: list[Row]) -> dict:
    """The means over all images, and the rows themselves."""
    names = [name for name in rows[0] if name != "file"]
    means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in names}
    gain = means["psnr"] - means["input_psnr"]
    return {"images": len(rows), **means, "psnr_gain": gain, "by_image": rows}


def show_extremes(rows: list[Row], triples: list[list[Tensor]], most: int, report: Path) -> None:
    """Saves sheets of the images with the best and of those with the worst PSNR."""
    found = list(zip(rows, triples, strict=True))
    found.sort(key=lambda pair: float(pair[0]["psnr"]))
    show(found[::-1][:most], report / "best.png")
    show(found[:most], report / "worst.png")


def show(found: list[tuple[Row, list[Tensor]]], path: Path) -> None:
    """Saves a sheet with a row of input, output and target for each image."""
    captions = []
    for row, _ in found:
        for prefix in ("input_", ""):
            value = f"{row[prefix + 'psnr']:.2f} dB, SSIM {row[prefix + 'ssim']:.3f}"
            captions.append(f"{row['file']}\n{'input' if prefix else 'output'}: {value}")
        captions.append(f"{row['file']}\ntarget")
    images = [image for _, triple in found for image in triple]
    save_sheet(images, captions, path, columns=3, size=SHOWN)


def table(metrics: dict) -> str:
    rows = [*metrics["by_image"], {**metrics, "file": "mean"}]
    width = max(len(row["file"]) for row in rows)
    lines = [f"{'image':{width}}  PSNR of input   output    SSIM of input  output    L1"]
    lines += [
        f"{row['file']:{width}}  {row['input_psnr']:10.2f} dB {row['psnr']:5.2f} dB  "
        f"{row['input_ssim']:13.4f}  {row['ssim']:.4f} {row['l1']:5.2f}"
        for row in rows
    ]
    return "\n".join([*lines, f"gain {metrics['psnr_gain']:+.2f} dB"])


if __name__ == "__main__":
    run_program(main)
