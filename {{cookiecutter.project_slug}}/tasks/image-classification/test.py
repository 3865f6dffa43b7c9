"""Judges a checkpoint by the test images: metrics, a confusion matrix, the worst mistakes.

python test.py --checkpoint runs/a/checkpoints/best.pt
python test.py --checkpoint best.pt --data my_images --report my_report
"""

import engine.interrupt  # noqa: F401  first, so that Ctrl-C ends in one line from here on

# isort: split
import json

import torch
from torch import Tensor
from tqdm import tqdm

import data
from classifier import Classifier
from engine import devices
from engine.arguments import Parser, add_machine_options, add_test_options, number
from engine.errors import DONE, run_program
from engine.loading import Loader
from engine.order import TestOrder
from engine.pictures import save_confusion, save_sheet
from engine.precision import Precision
from engine.runfolder import report_folder


def main() -> int:
    parser = Parser(description="Judges a checkpoint by the test part of a data set.")
    add_test_options(parser)
    add = parser.add_argument
    add("--batch-size", type=number(int, 1), default=128, help="images in a batch")
    add("--worst", type=number(int, 0), default=32, help="mistakes shown in mistakes.png")
    add_machine_options(parser)
    opt = parser.parse_args()

    # 1. The trained model, and the test part of its data.
    device = devices.pick_device(opt.device)
    precision = Precision(opt.precision, device)
    model, trained_with = Classifier.from_checkpoint(opt.checkpoint)
    trained_with.data = opt.data or trained_with.data
    test_set = data.test_part(trained_with, model.about)
    order = TestOrder(len(test_set), opt.batch_size)
    loader = Loader(test_set, order, device, opt.workers, opt.prefetch)

    report = report_folder(opt.report, opt.checkpoint)

    # 2. The scores of all images.
    scores, labels = score(devices.place(model, device), loader, precision)

    # 3. What they say.
    matrix = confusion_matrix(scores.argmax(dim=1), labels, len(model.classes))
    metrics = summarize(scores, labels, matrix, model)
    text = json.dumps(metrics, indent=2)
    (report / "metrics.json").write_text(text + "\n", encoding="utf-8")
    save_confusion(matrix, model.classes, report / "confusion.png")
    mistakes = worst_mistakes(scores, labels)[: opt.worst]
    save_sheet(
        [test_set[i][0] for i in mistakes],
        [describe(scores[i], int(labels[i]), model.classes) for i in mistakes],
        report / "mistakes.png",
    )
    print(table(metrics))
    print(f"wrote {report}: metrics.json, confusion.png, mistakes.png")
    return DONE


@torch.no_grad()
def score(model: Classifier, loader: Loader, precision: Precision) -> tuple[Tensor, Tensor]:
    """The scores (N, K) and the labels (N,) of all images of `loader`, on the CPU."""
    scores, labels = [], []
    with loader.batches() as batches, precision.autocast():
        for images, wanted in tqdm(batches, total=len(loader.order), desc="test", disable=None):
            scores.append(model.scores(images).cpu())
            labels.append(wanted.cpu())
    return torch.cat(scores), torch.cat(labels)


def confusion_matrix(predicted: Tensor, labels: Tensor, k: int) -> Tensor:
    """Counts of shape (K, K): row = true class, column = predicted class."""
    return torch.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)


def summarize(scores: Tensor, labels: Tensor, matrix: Tensor, model: Classifier) -> dict:
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
