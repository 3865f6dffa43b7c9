"""The table of predictions: the best classes of each image, as CSV."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from engine import terminal
from engine.arguments import output_file
from engine.checkpoint import write_atomically
from engine.errors import BadInput

SHOWN = 10  # predictions that are printed


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes a table whose names of files may be any bytes."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, lambda file: file.write(os.fsencode(text.getvalue())))


class Predictions:
    """The K best classes of each image: file, class, probability, class_2, probability_2, ...

    Args:
        out: The CSV file to write.
        classes: The names of all classes.
        top: K.

    Raises:
        BadInput: `out` cannot be a file, or there are less than K classes.
    """

    def __init__(self, out: str, classes: list[str], top: int) -> None:
        self.path, self.classes, self.top = output_file(out), classes, top
        if top > len(classes):
            raise BadInput(f"--top {top}: the checkpoint has {len(classes)} classes; lower it")
        self.rows: list[list[str]] = []
        self.readable: list[bool] = []

    def add(self, files: Sequence[str], probabilities: Tensor, readable: Tensor) -> None:
        """Adds the next batch.

        Args:
            files: The paths of all images, in the order of the batches.
            probabilities: (N, number of classes).
            readable: Whether each image could be read, bool (N,); the others get no row.
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
        header = ["file", "class", "probability"]
        for k in range(2, self.top + 1):
            header += [f"class_{k}", f"probability_{k}"]
        write_csv(self.path, [header, *self.rows])
        for file, *cells in self.rows[:SHOWN]:
            pairs = zip(cells[::2], cells[1::2], strict=True)
            terminal.say(f"{file}: {', '.join(f'{name} ({float(p):.0%})' for name, p in pairs)}")
