"""What is shown and recorded of a run: the progress bar, metrics.jsonl, TensorBoard's files."""

import json
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tensorboardX import SummaryWriter
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from engine.checkpoint import write_atomically
from engine.distributed import ALONE, World
from engine.evaluation import Losses, mean_losses
from engine.meter import Rates, make_profiler
from engine.records import read_points
from engine.state import TrainState

LAYOUT = "{desc} {percentage:3.0f}%|{bar:6}| {n_fmt}/{total_fmt} {remaining}{postfix}"


class Logger:
    """Shows the progress of a run and appends to its records. The state is never changed.

    A context manager. An interrupted run logs once more what it had logged after its last
    checkpoint, so that is dropped at the beginning. A full disk ends the logging, with a warning,
    and not the run.

    Args:
        folder: The run folder.
        state: The state of the run.
        world: The processes of the run, of which the first one alone records.
    """

    def __init__(self, folder: Path, state: TrainState, world: World = ALONE) -> None:
        self.metrics, self.report, self.state = folder / "metrics.jsonl", folder / "report", state
        self.world = world
        self.working = self.first = world.rank == 0
        self._thread = ThreadPoolExecutor(1, "image")
        self._drawing: Future[None] | None = None

    def __enter__(self) -> "Logger":
        n_iter = self.state.n_iter
        if self.first:
            self._open_records(n_iter)
        self.profiler = make_profiler(self.state.opt.profile, self.metrics.with_name("profile"))
        # tensorboardX writes in a thread; if that ended unnoticed, the run would wait for ever.
        self._excepthook, threading.excepthook = threading.excepthook, self._thread_failed
        self.bar = tqdm(  # none if the output is not a terminal
            total=self.state.total,
            initial=n_iter,
            bar_format=LAYOUT,
            leave=False,
            disable=None if self.first else True,
        )
        return self

    def _open_records(self, n_iter: int) -> None:
        """Drops what is logged once more after `n_iter`, and opens TensorBoard's file."""
        if self.metrics.exists():
            limit = {"train": n_iter, "val": self.state.validated}
            kept = [p for p in read_points(self.metrics) if p["n_iter"] <= limit[p["split"]]]
            text = "".join(json.dumps(point) + "\n" for point in kept)
            write_atomically(self.metrics, lambda file: file.write(text.encode()))
        # TensorBoard cannot forget points, but hides those that come after purge_step.
        purge = n_iter + 1 if n_iter else None
        self.writer = SummaryWriter(str(self.metrics.parent), purge_step=purge)

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.profiler is not None:
            self.profiler.stop()
        self._thread.shutdown()
        if self.working:
            with suppress(OSError):  # a full disk
                self.writer.close()
        threading.excepthook = self._excepthook
        if self._drawing is not None and error[0] is None:
            self._drawing.result()  # raises what went wrong with the last image

    def step(self) -> None:
        """Moves the bar on by a step."""
        self.bar.set_description_str(self._epoch(), refresh=False)
        self.bar.update()
        if self.profiler is not None:
            self.profiler.step()

    def train(self, micro_batches: list[Losses], lr: float, rates: Rates) -> None:
        """Records the losses of a step; reading them makes the program wait for the device."""
        values = mean_losses(micro_batches, self.world)
        shown = [f"{name} {value:.4f}" for name, value in values.items()]
        self.bar.set_postfix_str(", ".join([*shown, str(rates)]), refresh=False)
        self._add("train", {**values, "lr": lr, **asdict(rates)})

    def validation(self, metrics: dict[str, float], better: bool) -> None:
        """Records and prints the metrics of a validation."""
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.bar.clear()
        print(f"{self._epoch()}: val {text}{' (best)' * better}", flush=True)
        self._add("val", metrics)

    def image(self, name: str, grid: Tensor) -> None:
        """Records an image, uint8 of shape (3, H, W), in TensorBoard and in report/.

        A thread packs it, which can take as long as a hundred steps on a GPU.
        """
        if not self.working:
            return
        if self._drawing is not None:
            self._drawing.result()
        n_iter = self.state.n_iter
        self._drawing = self._thread.submit(self._draw, name, grid.cpu(), n_iter)

    def _draw(self, name: str, grid: Tensor, n_iter: int) -> None:
        try:
            self.report.mkdir(exist_ok=True)
            path, image = self.report / f"{name}-{n_iter:09d}.png", to_pil_image(grid)
            write_atomically(path, lambda file: image.save(file, "PNG", compress_level=1))
        except OSError as error:
            self._give_up(error)
        self.writer.add_image(name, grid.numpy(), n_iter)

    def _epoch(self) -> str:
        return f"epoch {self.state.epoch}/{self.state.opt.epochs}"

    def _add(self, split: str, values: dict[str, float]) -> None:
        """Adds a point: a line of metrics.jsonl, and the scalars `split/name`."""
        n_iter = self.state.n_iter
        point = {"n_iter": n_iter, "epoch": self.state.epoch, "split": split, "values": values}
        if not self.first:
            return
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
        except OSError as error:
            self._give_up(error)
        for name, value in values.items():
            if self.working:
                self.writer.add_scalar(f"{split}/{name}", value, n_iter)

    def _give_up(self, error: OSError) -> None:
        if self.working:
            print(f"warning: {error}; the run goes on without a record", file=sys.stderr)
        self.working = False

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            threading.__excepthook__(args)
            return
        self._give_up(args.exc_value)
        # The thread goes on reading, to the `object()` that ends it: with its queue full, the run
        # would wait for ever, at the latest when it ends.
        queue = getattr(args.thread, "_queue", None)
        while queue is not None and type(queue.get()) is not object:
            pass
