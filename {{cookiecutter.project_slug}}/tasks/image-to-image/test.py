"""Evaluates a checkpoint: PSNR, SSIM and L1 of each image, the best and the worst outputs,
and a page of all.

    python test.py --checkpoint runs/a
    python test.py --checkpoint runs/a --split train                   on the training images
    python test.py --checkpoint runs/a --against runs/b                image by image
    python test.py --checkpoint best.pt --data my_images --report my_report
"""

# ruff: noqa: E402
from engine.errors import begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

from argparse import Namespace
from heapq import nlargest, nsmallest

import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchvision.transforms.functional import center_crop

import dataset
import options
from engine import devices, modules, terminal
from engine.arguments import Parser, add_test_options, number
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.data.stored import to_depth
from engine.report.common import Report
from losses import BEST_PSNR
from model import Model
from task.report import Example, Row, add_intervals, write_report
from task.tiles import InTiles, add_tile_options, check_tiles

SHOWN = 224  # pixels of an image that a sheet shows, from its middle


def main() -> int:
    parser = Parser(description="Evaluates a checkpoint on the test images.")
    add_test_options(parser)
    add = parser.add_argument
    add("--worst", type=number(int, 1), default=4, help="images in best.png and in worst.png")
    add_tile_options(parser)
    opt = parser.parse_args()
    terminal.be_quiet(opt.quiet)

    # 1. The trained model, and the images to evaluate it on.
    check_tiles(opt)
    device = devices.pick_device(opt.device)
    amp = devices.Amp(opt.precision, device)
    model, trained_with = Model.from_checkpoint(opt.checkpoint)
    modules.to_device(model, device).eval()
    predict = InTiles(model.predict, opt, model.scale)
    judged_with = Namespace(**{**vars(trained_with), "data": opt.data or trained_with.data})
    test_set = dataset.eval_set(judged_with, model.info, opt.split)
    sampler = EvalBatchSampler(len(test_set), 1)  # images of any size cannot share a batch
    loader = Loader(test_set, sampler, device, opt.workers, opt.prefetch)
    defaults = options.make_parser().defaults()
    report = Report(opt, trained_with, defaults, model, test_set)

    # 2. The outputs and their metrics. Images are kept of the best and the worst alone.
    rows: list[Row] = []
    best: list[Example] = []
    worst: list[Example] = []
    files = terminal.bar(test_set.names(), desc="test")
    with loader, loader.batches() as batches, amp.autocast():
        for file, (inputs, targets) in zip(files, batches, strict=True):
            output = to_depth(predict(inputs[0], file), model.scale.form.depth)
            images = inputs[0].cpu(), output.cpu(), targets[0].cpu()
            rows.append(compute_metrics(file, *images, span=model.scale.span))
            side = min(SHOWN, *output.shape[1:])
            shown = (image.to(torch.uint8) for image in model.shown(*images))
            example = rows[-1], [center_crop(image, [side]).clone() for image in shown]
            best = nlargest(opt.worst, [*best, example], key=psnr_of)
            worst = nsmallest(opt.worst, [*worst, example], key=psnr_of)

    # 3. The report: sheets, tables, and a page that shows them all.
    predict.warn()
    metrics = {**add_intervals(summarize(rows)), "tiles_differ_by": predict.difference}
    report.write_metrics(metrics)
    shown = min(opt.worst, max(1, len(rows) // 2))  # no image is in both
    write_report(report, metrics, best[:shown], worst[:shown])
    terminal.say(table(metrics))
    terminal.conclude(f"wrote {report.folder / 'index.html'}")
    return 0


def compute_metrics(
    file: str, image: Tensor, output: Tensor, target: Tensor, *, span: float = 255
) -> Row:
    """The metrics of an output, and of the input for comparison: uint8 (3, H, W) each."""
    of_input = {f"input_{name}": value for name, value in compare(image, target, span).items()}
    return {"file": file, **compare(output, target, span), **of_input}


def compare(image: Tensor, target: Tensor, span: float = 255) -> dict[str, float]:
    """The similarity of an image to its target, both uint8 (3, H, W) of at least 11 x 11 pixels.

    With `--images stored` they are (C, H, W), above 8 bits float32, and `span` is the range of the
    training images.

    Returns:
        psnr: in dB, at most 100. ssim: at most 1, with the Gaussian window of Wang et al. 2004.
        l1: the mean absolute difference, in grey levels.
    """
    a, b = target.numpy(), image.numpy()
    same = bool((a == b).all())
    psnr = BEST_PSNR if same else peak_signal_noise_ratio(a, b, data_range=span)
    ssim = structural_similarity(
        a,
        b,
        channel_axis=0,
        data_range=span,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    l1 = (target.float() - image.float()).abs().mean()
    return {"psnr": min(BEST_PSNR, float(psnr)), "ssim": float(ssim), "l1": float(l1)}


def psnr_of(example: Example) -> float:
    return float(example[0]["psnr"])


def summarize(rows: list[Row]) -> dict:
    """The means over all images, and the rows themselves."""
    names = [name for name in rows[0] if name != "file"]
    means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in names}
    gain = means["psnr"] - means["input_psnr"]
    return {"images": len(rows), **means, "psnr_gain": gain, "by_image": rows}


def table(metrics: dict) -> str:
    rows = [{**row, "file": terminal.printable(row["file"])} for row in metrics["by_image"]]
    rows.append({**metrics, "file": "mean"})
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
