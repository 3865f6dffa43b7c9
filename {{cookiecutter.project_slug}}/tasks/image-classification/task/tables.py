"""The table of predictions: the best classes of each image, as CSV."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from engine import terminal
from engine.errors import BadInput
from engine.report.outputs import Output, csv_content
from engine.text import printable

SHOWN = 10  # predictions that are printed


def is_table(path: Path) -> bool:
    """Whether a file was written by predict.py."""
    with open(path, "rb") as file:
        head = file.readline(1 << 20).decode(errors="replace").strip().split(",")
    return head == columns(len(head) // 2)


def columns(top: int) -> list[str]:
    """The names of the columns for the K best classes."""
    more = [f"{name}_{k}" for k in range(2, top + 1) for name in ("class", "probability")]
    return ["file", "class", "probability", *more]


class Predictions:
    """The K best classes of each image: file, class, probability, class_2, probability_2, ...

    Args:
        out: The CSV file to write, or a stream (see Output).
        classes: The names of all classes.
        top: K.

    Raises:
        BadInput: `out` is an input or another program's file, or there are less than K classes.
    """

    def __init__(self, out: str, classes: list[str], top: int) -> None:
        self.out = Output(out, "a table of predict.py", is_table)
        self.classes, self.top = classes, top
        if top > len(classes):
            raise BadInput(f"--top {top}: the checkpoint has {len(classes)} classes; lower it")
        self.rows: list[list[str]] = []
        self.readable: list[bool] = []

    def add(self, files: Sequence[str], probabilities: Tensor, readable: Tensor) -> None:
        """Adds the next batch of `files`, which are those of all: a row for each readable image.

        Its probabilities are (N, number of classes), `readable` is bool (N,).
        """
        best, labels = probabilities.float().topk(self.top, dim=1)
        batch = zip(best.tolist(), labels.tolist(), readable.tolist(), strict=True)
        for shares, indices, could in batch:
            file = files[len(self.readable)]
            self.readable.append(could)
            if could:
                pairs = zip(indices, shares, strict=True)
                cells = [cell for i, share in pairs for cell in (self.classes[i], f"{share:.6f}")]
                self.rows.append([file, *cells])

    def write(self) -> None:
        """Writes the file as a whole, and prints the first rows."""
        self.out.write(csv_content([columns(self.top), *self.rows]))
        for file, *cells in self.rows[:SHOWN]:
            pairs = zip(cells[::2], cells[1::2], strict=True)
            text = ", ".join(f"{name} ({float(p):.0%})" for name, p in pairs)
            terminal.say(printable(f"{file}: {text}"))
