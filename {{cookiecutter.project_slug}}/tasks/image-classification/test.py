"""Evaluates a checkpoint: metrics, a confusion matrix, the worst mistakes, and a page of all.

    python test.py --checkpoint runs/a
    python test.py --checkpoint runs/a --split train
    python test.py --checkpoint runs/a --against runs/b
    python test.py --checkpoint best.pt --data my_images --report my_report

The images are those of test/, unless --split names others.
"""

# ruff: noqa: E402
from engine.errors import begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

from argparse import Namespace

import torch
from torch import Tensor

import dataset
import options
from engine import devices, modules, terminal
from engine.arguments import Parser, add_test_options, number
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.report.common import Report
from model import Model
from task.report import Results, dash, write_report


def main() -> int:
    parser = Parser(description="Evaluates a checkpoint on the test images.")
    add_test_options(parser)
    add = parser.add_argument
    add("--batch-size", type=number(int, 1), default=128, help="images in a batch")
    add("--worst", type=number(int, 0), default=32, help="mistakes shown in mistakes.png")
    opt = parser.parse_args()
    terminal.be_quiet(opt.quiet)

    # 1. The trained model, and the images to judge it by.
    device = devices.pick_device(opt.device)
    amp = devices.Amp(opt.precision, device)
    model, trained_with = Model.from_checkpoint(opt.checkpoint)
    judged_with = Namespace(**{**vars(trained_with), "data": opt.data or trained_with.data})
    test_set = dataset.eval_set(judged_with, model.info, opt.split)
    sampler = EvalBatchSampler(len(test_set), opt.batch_size)
    loader = Loader(test_set, sampler, device, opt.workers, opt.prefetch)
    defaults = options.make_parser().defaults()
    report = Report(opt, trained_with, defaults, model, test_set)

    # 2. The scores of all images.
    files = test_set.names()
    modules.to_device(model, device, trained_with.freeze).eval()
    with loader:
        scores, labels = score(model, loader, amp)

    # 3. The metrics, and the report: figures, tables, and a page that shows them all.
    results = Results(scores, labels, files, model.classes)
    metrics = summarize(results, model)
    report.write_metrics(metrics)
    write_report(report, metrics, results, test_set, opt.worst, model.loss_name)
    terminal.say(table(metrics))
    terminal.conclude(f"wrote {report.folder / 'index.html'}")
    return 0


@torch.no_grad()
def score(model: Model, loader: Loader, amp: devices.Amp) -> tuple[Tensor, Tensor]:
    """The scores (N, K) and the labels (N,) of all images of `loader`, on the CPU."""
    scores, labels = [], []
    total = loader.sampler.count()
    with loader.batches() as batches, amp.autocast():
        for images, expected in terminal.bar(batches, total=total, desc="test"):
            scores.append(model.scores(images).cpu())
            labels.append(expected.cpu())
    return torch.cat(scores), torch.cat(labels)


def summarize(results: Results, model: Model) -> dict:
    """All metrics, in [0, 1] but for the loss.

    A class without images has None, and counts in no mean (macro).
    """
    by_class, images = results.by_class(), results.matrix.sum(dim=1).tolist()
    return {
        "images": len(results.labels),
        "accuracy": float(results.right.double().mean()),
        "accuracy_interval": list(results.accuracy_interval()),
        "loss": float(model.cpu().criterion(results.scores, results.labels)),
        "calibration_error": results.calibration_error(),
        **{f"macro_{name}": float(values.nanmean()) for name, values in by_class.items()},
        "classes": {
            name: {
                "images": images[i],
                **{m: float(values[i]) if images[i] else None for m, values in by_class.items()},
            }
            for i, name in enumerate(model.classes)
        },
        "confusion": results.matrix.tolist(),
    }


def table(metrics: dict) -> str:
    classes = [(terminal.printable(name), row) for name, row in metrics["classes"].items()]
    width = max(len(name) for name in ("class", *(name for name, _ in classes)))
    ends = metrics["accuracy_interval"]
    within = f" (95% interval {ends[0]:.2%} to {ends[1]:.2%})"
    lines = [f"{'class':{width}}  images  precision   recall"]
    for name, row in classes:
        precision, recall = (dash(row[share], "{:.2%}".format) for share in ("precision", "recall"))
        lines.append(f"{name:{width}}  {row['images']:6}  {precision:>9}  {recall:>7}")
    lines += [
        f"{'mean':{width}}  {metrics['images']:6}  {metrics['macro_precision']:9.2%}  "
        f"{metrics['macro_recall']:7.2%}",
        f"accuracy {metrics['accuracy']:.2%}{within}, loss {metrics['loss']:.4f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
