"""Evaluates a checkpoint: metrics, a confusion matrix, the worst mistakes.

    python test.py --checkpoint runs/a
    python test.py --checkpoint runs/a --split train
    python test.py --checkpoint best.pt --data my_images --report my_report

The images are those of test/, unless --split names others.
"""

from engine.errors import DONE, run_program  # first: Ctrl-C ends in one line from here on

# isort: split
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import dataset
from engine import modules
from engine.arguments import Parser, add_machine_options, add_test_options, number, report_name
from engine.devices import Amp, pick_device
from engine.figures import new_figure, save_sheet, shorten_text
from engine.loader import Loader
from engine.run_dir import report_dir
from engine.sampler import EvalBatchSampler
from model import Model


def main() -> int:
    parser = Parser(description="Evaluates a checkpoint on the test images.")
    add_test_options(parser)
    add = parser.add_argument
    add("--batch-size", type=number(int, 1), default=128, help="images in a batch")
    add("--worst", type=number(int, 0), default=32, help="mistakes shown in mistakes.png")
    add_machine_options(parser)
    opt = parser.parse_args()

    # 1. The trained model, and the images to judge it by.
    device = pick_device(opt.device)
    amp = Amp(opt.precision, device)
    model, trained_with = Model.from_checkpoint(opt.checkpoint)
    name = report_name(opt, trained_with.data)
    trained_with.data = opt.data or trained_with.data
    test_set = dataset.eval_set(trained_with, model.classes, opt.split)
    sampler = EvalBatchSampler(len(test_set), opt.batch_size)
    loader = Loader(test_set, sampler, device, opt.workers, opt.prefetch)
    report = report_dir(opt.report, opt.checkpoint, name)

    # 2. The scores of all images.
    with loader:
        scores, labels = score(modules.place(model, device).eval(), loader, amp)

    # 3. The metrics and figures.
    matrix = confusion_matrix(scores.argmax(dim=1), labels, len(model.classes))
    metrics = summarize(scores, labels, matrix, model)
    (report / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    save_confusion(matrix, model.classes, report / "confusion.png")
    mistakes = worst_mistakes(scores, labels)[: opt.worst]
    save_sheet(
        [test_set[i][0].cpu() for i in mistakes],
        [describe(scores[i], int(labels[i]), model.classes) for i in mistakes],
        report / "mistakes.png",
    )
    print(table(metrics))
    print(f"wrote {report}: metrics.json, confusion.png, mistakes.png")
    return DONE


@torch.no_grad()
def score(model: Model, loader: Loader, amp: Amp) -> tuple[Tensor, Tensor]:
    """The scores (N, K) and the labels (N,) of all images of `loader`, on the CPU."""
    scores, labels = [], []
    total = loader.sampler.count()
    with loader.batches() as batches, amp.autocast():
        for images, expected in tqdm(batches, total=total, desc="test", disable=None):
            scores.append(model.scores(images).cpu())
            labels.append(expected.cpu())
    return torch.cat(scores), torch.cat(labels)


def confusion_matrix(predicted: Tensor, labels: Tensor, k: int) -> Tensor:
    """Counts of shape (K, K): row = true class, column = predicted class."""
    return torch.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)


def summarize(scores: Tensor, labels: Tensor, matrix: Tensor, model: Model) -> dict:
    """All metrics, in [0, 1] but for the loss.

    The precision of a class that was never predicted, and the recall of one without images, is 0.
    """
    right = matrix.diag()
    precision = right / matrix.sum(dim=0).clamp(min=1)
    recall = right / matrix.sum(dim=1).clamp(min=1)
    return {
        "images": len(labels),
        "accuracy": float(right.sum() / len(labels)),
        "loss": float(model.cpu().criterion(scores, labels)),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "classes": {
            name: {
                "images": int(matrix[i].sum()),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
            }
            for i, name in enumerate(model.classes)
        },
        "confusion": matrix.tolist(),
    }


def worst_mistakes(scores: Tensor, labels: Tensor) -> list[int]:
    """The wrongly classified images, those first whose true class got the least probability."""
    wrong = scores.argmax(dim=1) != labels
    truth = scores.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    order = truth.argsort(stable=True)
    return order[wrong[order]].tolist()


def save_confusion(matrix: Tensor, classes: list[str], path: Path) -> None:
    """Saves a confusion matrix; the shade of a cell is its share of the row.

    Args:
        matrix: Counts of shape (K, K): row = true class, column = predicted class.
        classes: The K names.
        path: Where to write the PNG.
    """
    k = len(classes)
    side = min(max(4.0, 1.5 + 0.42 * k), 24.0)
    figure, axes = new_figure(side, side)
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if k <= 40:
        for row, column in matrix.nonzero().tolist():
            count = int(matrix[row, column])
            light = count > 0.5 * int(matrix[row].sum())
            color = "white" if light else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    names = [shorten_text(name, 24) for name in classes]
    axes.set_xticks(range(k), names, rotation=90)
    axes.set_yticks(range(k), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.savefig(path)


def describe(scores: Tensor, label: int, classes: list[str]) -> str:
    probability, predicted = scores.softmax(dim=0).max(dim=0)
    return f"{classes[label]}, taken for\n{classes[int(predicted)]} ({probability:.0%})"


def table(metrics: dict) -> str:
    width = max(map(len, [*metrics["classes"], "class"]))
    lines = [f"{'class':{width}}  images  precision  recall"]
    lines += [
        f"{name:{width}}  {row['images']:6}  {row['precision']:9.2%}  {row['recall']:6.2%}"
        for name, row in metrics["classes"].items()
    ]
    lines += [
        f"{'mean':{width}}  {metrics['images']:6}  {metrics['macro_precision']:9.2%}  "
        f"{metrics['macro_recall']:6.2%}",
        f"accuracy {metrics['accuracy']:.2%}, loss {metrics['loss']:.4f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
