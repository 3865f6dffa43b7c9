"""What is shown and recorded of a run: the progress bar, metrics.jsonl, TensorBoard's files."""

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from statistics import fmean
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from engine import terminal
from engine.arguments import config_text, plain
from engine.checkpoint import write_atomically
from engine.distributed import ALONE, World
from engine.evaluation import Losses, Metrics, mean_losses
from engine.meter import Rates, make_profiler
from engine.report.records import read_points
from engine.run_dir import RunDir
from engine.state import WITHOUT_EFFECT, TrainState
from engine.text import drawable

BAR = "{desc} {percentage:3.0f}%|{bar:6}| {n_fmt:>{digits}}/{total_fmt} {remaining} left{postfix}"
FLUSH_EVERY = 30.0  # seconds, and with each checkpoint, TensorBoard's file gets the events


class Logger:
    """Shows the progress of a run, and appends to its records. The state is never changed.

    A context manager. An interrupted run logs once more what it had logged after its last
    checkpoint, so that is dropped at the beginning. TensorBoard's file is on the disk once a
    checkpoint is. A full disk ends the logging, with a warning, and not the run. Of several
    processes the first one alone records.
    """

    def __init__(self, run: RunDir, state: TrainState, world: World = ALONE) -> None:
        self.metrics, self.report = run.path / "metrics.jsonl", run.path / "report"
        self.run, self.state, self.world = run, state, world
        self._problem = ""  # a warning that is not printed yet
        self.working = self.first = world.rank == 0
        self._events: deque[Event] = deque()  # those that are not yet in TensorBoard's file
        self._flushed, self._writing = time.time(), threading.RLock()
        self._validated = state.seconds  # when the last epoch line was printed
        self._losses: list[dict[str, float]] = []  # those logged since then
        self._thread = ThreadPoolExecutor(1, "image")
        self._drawing: Future[None] | None = None

    def __enter__(self) -> "Logger":
        n_iter, self.was_over = self.state.n_iter, self.state.is_over()
        if self.first:
            self._open_records(n_iter)
            self.run.checkpoints.when_written = self._checkpoint_written
        steps = self.state.opt.profile if self.first else 0
        self.profiler = make_profiler(steps, self.metrics.with_name("profile"))
        terminal.say(self.run.describe(self.state))
        total = self.state.total
        layout = BAR.replace("{digits}", str(len(str(total))))
        how = {"total": total, "initial": n_iter, "bar_format": layout}
        self.bar = terminal.bar(disable=not self.first, leave=False, **how)
        return self

    def _open_records(self, n_iter: int) -> None:
        """Drops what is logged once more after `n_iter`, and opens TensorBoard's file."""
        limit, points = {"val": self.state.validated}, read_points(self.metrics)
        kept = [p for p in points if p["n_iter"] <= limit.get(p["split"], n_iter)]
        text = "".join(f"{point['line']}\n" for point in kept)
        write_atomically(self.metrics, lambda file: file.write(os.fsencode(text)))
        self._lines = self.metrics.open("a", buffering=1, encoding="utf-8")
        # TensorBoard cannot forget points, but hides those from the step of a start on. A repeated
        # validation has the number of a step that is not repeated, whose point is added again.
        again = self.state.validation_is_due()
        number = f".{len(list(self.run.path.glob('events.*')))}"  # two may begin in one second
        self._writer = EventsWriter(str(self.run.path / "events"), number)
        self._record(n_iter + (not again), session_log=SessionLog(status=SessionLog.START))
        for point in kept if again else ():
            if point["n_iter"] == n_iter:
                self._add_scalars(point["split"], point["values"])
        config = config_text(self.state.opt, self.run.path / "config.txt")
        lines = "\n".join(f"    {drawable(line)}" for line in config.split("\n"))
        self._record(n_iter + 1, summary=summary.text("config.txt", lines))

    def __exit__(self, *error: object) -> None:
        terminal.close(self.bar)
        if self.profiler is not None:
            self.profiler.stop()
        self._thread.shutdown()
        if self.working:
            if error[0] is None and self.state.is_over() and not self.was_over:
                self._add_hyperparameters()
            self._flush()
        with self._writing:  # the thread of the last checkpoint may flush, too
            self.working = False
            for file in (self._lines, self._writer) if self.first else ():
                with suppress(OSError):  # a full disk
                    file.close()
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
        shown = [f"{name} {value:.4g}" for name, value in values.items()]
        self._losses.append(values)
        terminal.set_postfix(self.bar, [*shown, *str(rates).split(", ")])
        if self.state.opt.overfit_one_batch:  # to see them fall is what such a run is for
            terminal.say(f"step {self.state.n_iter}: {', '.join(shown)}")
        norms = self.state.optimizers.norms() if self.working else {}
        self._add("train", {**values, "lr": lr, **vars(rates)}, norms)

    def validation(self, metrics: Metrics, is_best: bool) -> None:
        """Records and prints the metrics of a validation; TensorBoard shows its images."""
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._losses:
            means = {n: fmean(losses[n] for losses in self._losses) for n in self._losses[0]}
            text += "; train " + ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
        took, self._validated = self.state.seconds - self._validated, self.state.seconds
        self._losses = []
        text += f"; {terminal.duration(took)}"
        terminal.say(f"{self._epoch()}: val {text}{' (best)' * is_best}")
        self._add("val", metrics, {})
        self._add_scalars("best", {self.state.monitor: self.state.best})
        self._in_background(self._draw_validation, metrics, self.state.n_iter)

    def first_step(self, micro_batches: list[Losses], model: Any, batch: Any) -> None:
        """Records an image of the first batch, and warns of losses far above those of a guess.

        The model's `image_grid` draws the batch, and its `loss_of_a_guess`, if any, returns these.
        """
        guessed: dict[str, float] = getattr(model, "loss_of_a_guess", dict)()
        for name, value in mean_losses(micro_batches, self.world).items():
            if value > 3 * guessed.get(name, math.inf) and self.first:
                terminal.warn(
                    f"the first loss, {name} {value:.4g}, is far above that of a guess, "
                    f"{guessed[name]:.4g}; see docs/recipes.md, The order"
                )
        if self.working:  # by a thread: to pack it can take as long as a hundred steps on a GPU
            grid = terminal.attempt(lambda: model.image_grid(*batch).cpu(), "image batch")
            if grid is not None:
                self._in_background(self._draw, "batch", grid, self.state.n_iter)

    def _in_background(self, draw: Callable[..., None], *what: Any) -> None:
        if not self.working:
            return
        if self._drawing is not None:
            self._drawing.result()
        self._drawing = self._thread.submit(draw, *what)

    def _draw(self, name: str, grid: Tensor, n_iter: int) -> None:
        self._record_image(name, grid, n_iter)
        if (image := terminal.attempt(lambda: to_pil_image(grid), f"image {name}")) is None:
            return
        try:
            self.report.mkdir(exist_ok=True)
            path = self.report / f"{name}-{n_iter:09d}.png"
            write_atomically(path, lambda file: image.save(file, "PNG", compress_level=1))
        except OSError as error:
            self._give_up(error)

    def _draw_validation(self, metrics: Metrics, n_iter: int) -> None:
        for name, image in metrics.draw().items():
            self._record_image(f"val/{name}", image, n_iter)

    def _record_image(self, name: str, image: Tensor, n_iter: int) -> None:
        pack = partial(summary.image, drawable(name))
        if packed := terminal.attempt(lambda: pack(image.cpu().numpy()), f"image {name}"):
            self._record(n_iter, summary=packed)

    def _add_hyperparameters(self) -> None:
        """Adds the options to TensorBoard's table of runs.

        `SummaryWriter.add_hparams` would write them into a folder of their own, with a list of the
        columns. Without that list TensorBoard shows first the options that differ between runs, and
        of the metrics, which are all scalars, the first by their names: hence best/.
        """
        options = {
            name: drawable(value) if isinstance(value, list | str) else value
            for name, value in plain(self.state.opt).items()
            if name not in WITHOUT_EFFECT
        }
        _, begin, end = summary.hparams(options, {})
        for part in (begin, end):
            self._record(0, summary=part)

    def _epoch(self) -> str:
        return f"epoch {self.state.epoch}/{self.state.opt.epochs}"

    def _add(self, split: str, values: dict[str, float], more: dict[str, float]) -> None:
        """Adds a point: a line of metrics.jsonl, and the scalars `split/name`, with some more."""
        # JSON has no word for what is no number.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        point = {"n_iter": self.state.n_iter, "epoch": self.state.epoch, "split": split}
        point["values"] = finite
        if split == "val":
            point["seconds"] = round(self.state.seconds, 1)
        try:
            if self.first:
                self._lines.write(json.dumps(point) + "\n")
        except OSError as error:
            self._give_up(error)
        self._add_scalars(split, {**values, **more})

    def _add_scalars(self, split: str, values: dict[str, float]) -> None:
        tags = {drawable(f"{split}/{name}"): value for name, value in values.items()}
        named = [Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()]
        self._record(self.state.n_iter, summary=Summary(value=named))
        if self.working and time.time() - self._flushed >= FLUSH_EVERY:
            self._flushed = time.time()
            self._thread.submit(self._flush)

    def _record(self, n_iter: int, **what: Any) -> None:
        """Adds an event to those that TensorBoard's file gets next; many at once cost the least."""
        if self.working:
            self._events.append(Event(wall_time=time.time(), step=n_iter, **what))

    def _checkpoint_written(self) -> None:
        if self._problem:  # if a checkpoint cannot be written either, its error is enough
            terminal.warn(self._problem)
            self._problem = ""
        self._flush()

    def _flush(self) -> None:
        """Brings to the disk what was logged until now; also called by threads."""
        with self._writing:
            try:
                while self.working and self._events:
                    self._writer.write_event(self._events.popleft())
                if self.working:
                    self._writer.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        with self._writing:  # of several threads that meet a full disk one says so
            if self.working:
                where = error.filename or self.run.path
                self._problem = f"{where}: {error.strerror}; the run goes on without a record"
            self.working = False
