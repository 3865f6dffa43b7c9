"""How fast a run is, and how much of the time is the network's own."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.profiler import profile, schedule, tensorboard_trace_handler

from engine.data.loader import UNDISTURBED_STEPS


@dataclass
class Rates:
    """The speed of a stretch of training; shares are of the elapsed time, in [0, 1]."""

    images_per_second: float
    data_wait: float
    efficiency: float

    def __str__(self) -> str:
        return (
            f"efficiency {self.efficiency:.0%}, data wait {self.data_wait:.0%}, "
            f"{self.images_per_second:,.0f} images/s"
        )


class Stopwatch:
    """Times `with` blocks; takes less time than a generator made a context manager would.

    Args:
        cuda: Whether the device stamps an event at both ends of each block.

    Attributes:
        seconds: The sum of their times by the clock of the program.
        events: The two events of each block, the oldest first.
    """

    def __init__(self, cuda: bool = False) -> None:
        self.cuda, self.seconds = cuda, 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self.begun = time.perf_counter()
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.events.append((start, end))
            start.record()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self.begun
        if self.cuda and error[0] is None:  # else CUDA may be broken, and raise once more
            self.events[-1][1].record()


class Meter:
    """Times the parts of a step: waiting for data, and computing.

    Compute efficiency is the share of the elapsed time that the same steps would take on data that
    are already there. Time outside of `waiting` and `computing` counts as neither.

    On CUDA, whose kernels run after the call that starts them has returned, the time of a step is
    read from events that the device stamps; the program never waits for them. On the CPU, worker
    processes take cores away from the step they load for, and lengthen it. There the first few
    steps are timed on batches that the main process has loaded before the workers start.

    Args:
        device: The device of the model.
        images: Images of an optimizer step.
        shared: Whether worker processes share the cores with the model. They start after
            loader.UNDISTURBED_STEPS.

    Attributes:
        waiting: For the blocks in which the program waits for data.
        computing: For those in which it computes, or on CUDA gives work to the device.
    """

    def __init__(self, device: torch.device, images: int, shared: bool) -> None:
        self.cuda, self.images, self.shared = device.type == "cuda", images, shared
        self.waiting, self.computing = Stopwatch(), Stopwatch(self.cuda)
        self.undisturbed: list[float] = []  # seconds of steps without workers
        self.restart()

    def restart(self) -> None:
        """Starts a new stretch, and drops the events that have finished."""
        self._finished_events()
        self.begun = time.perf_counter()
        self.waiting.seconds = self.computing.seconds = self.computed = 0.0
        self.steps = 0

    def count_step(self) -> None:
        """A step has been completed, or on CUDA given to the device."""
        self.steps += 1
        if not self.cuda:
            self.computed += self._without_workers(self.computing.seconds)
        self.computing.seconds = 0.0

    def rates(self) -> Rates:
        """The rates since the last start, and starts anew. On CUDA of finished steps alone."""
        elapsed = max(time.perf_counter() - self.begun, 1e-9)
        self.computed += self._finished_events()
        rates = Rates(
            self.steps * self.images / elapsed,
            self.waiting.seconds / elapsed,
            min(1.0, self.computed / elapsed),
        )
        self.restart()
        return rates

    def _without_workers(self, seconds: float) -> float:
        """The time that a step of so many seconds would take without workers."""
        if not self.shared:
            return seconds
        if len(self.undisturbed) < UNDISTURBED_STEPS:
            self.undisturbed.append(seconds)
            return seconds
        return min(seconds, median(self.undisturbed[1:]))  # the first one prepares kernels

    def _finished_events(self) -> float:
        """Takes the events that the device has passed; returns their time in seconds."""
        seconds, events = 0.0, self.computing.events
        while events and events[0][1].query():
            start, end = events.pop(0)
            seconds += start.elapsed_time(end) / 1000  # milliseconds
        return seconds


def make_profiler(steps: int, folder: Path) -> profile | None:
    """A running profiler that traces some steps, after the first ten; None for no steps.

    Its file, `*.pt.trace.json` in `folder`, is one for Perfetto and for TensorBoard's plugin
    torch-tb-profiler. Call `step` after each step, and `stop` at the end.
    """
    if not steps:
        return None
    when = schedule(wait=10, warmup=2, active=steps, repeat=1)
    profiler = profile(schedule=when, on_trace_ready=tensorboard_trace_handler(str(folder)))
    profiler.start()
    return profiler
