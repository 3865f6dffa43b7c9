"""What is plotted of a run: metrics.jsonl for programs, TensorBoard's files for people."""

import json
import sys
import threading
from pathlib import Path

from tensorboardX import SummaryWriter
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from engine.checkpoint import write_atomically


class Curves:
    """Appends to the curves in a run folder.

    What an interrupted run logged after its last checkpoint will be logged again, so it is dropped
    here. A full disk ends the logging, with a warning, and not the run.

    Args:
        folder: The run folder.
        n_iter: The step at which the run begins or goes on.
        tested: The step after which the last test pass was.
    """

    def __init__(self, folder: Path, n_iter: int, tested: int) -> None:
        self.metrics, self.report = folder / "metrics.jsonl", folder / "report"
        self.working = True
        if self.metrics.exists():
            limit = {"train": n_iter, "test": tested}
            kept = [p for p in _read_lines(self.metrics) if p["n_iter"] <= limit[p["split"]]]
            text = "".join(json.dumps(point) + "\n" for point in kept)
            write_atomically(self.metrics, lambda file: file.write(text.encode()))
        # TensorBoard cannot forget points, but hides those that come after purge_step.
        self.writer = SummaryWriter(str(folder), purge_step=n_iter + 1 if n_iter else None)
        # tensorboardX writes in a thread; if that ended unnoticed, the run would wait for ever.
        threading.excepthook = self._thread_failed

    def add(self, n_iter: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """Adds a point: a line of metrics.jsonl, and the scalars `split/name`."""
        point = {"n_iter": n_iter, "epoch": epoch, "split": split, "values": values}
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
        except OSError as error:
            self._give_up(error)
        for name, value in values.items():
            if self.working:
                self.writer.add_scalar(f"{split}/{name}", value, n_iter)

    def show(self, n_iter: int, name: str, picture: Tensor) -> None:
        """Adds a picture, uint8 of shape (3, H, W), to TensorBoard and to report/."""
        if not self.working:
            return
        self.writer.add_image(name, picture.cpu().numpy(), n_iter)
        try:
            self.report.mkdir(exist_ok=True)
            path = self.report / f"{name}-{n_iter:09d}.png"
            write_atomically(path, lambda file: to_pil_image(picture.cpu()).save(file, "PNG"))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self.working:
            print(f"warning: {error}; the run goes on without curves", file=sys.stderr)
        self.working = False

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, OSError):
            self._give_up(args.exc_value)
        else:
            threading.__excepthook__(args)


def _read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file, without lines that a kill or a full disk has cut off."""
    points = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            points.append(json.loads(line))
        except ValueError:
            continue
    return points
