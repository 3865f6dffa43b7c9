"""How fast a run is, and how much of the time is the network's own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    """

    def __init__(self, device: torch.device, images: int, shared: bool) -> None:
        self.cuda, self.images, self.shared = device.type == "cuda", images, shared
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.undisturbed: list[float] = []  # seconds of steps without workers
        self.restart()

    def restart(self) -> None:
        """Starts a new stretch, and drops the events that have finished."""
        self._finished_events()
        self.begun = time.perf_counter()
        self.waited = self.computed = self.step_time = 0.0
        self.steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The program waits for data."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The program computes, or on CUDA gives work to the device."""
        begun = time.perf_counter()
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
        yield
        self.step_time += time.perf_counter() - begun
        if self.cuda:
            end.record()
            self.events.append((start, end))

    def count_step(self) -> None:
        """A step has been completed, or on CUDA given to the device."""
        self.steps += 1
        if not self.cuda:
            self.computed += self._without_workers(self.step_time)
        self.step_time = 0.0

    def rates(self) -> Rates:
        """The rates since the last start, and starts anew. On CUDA of finished steps alone."""
        elapsed = max(time.perf_counter() - self.begun, 1e-9)
        self.computed += self._finished_events()
        rates = Rates(
            self.steps * self.images / elapsed,
            self.waited / elapsed,
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
        seconds = 0.0
        while self.events and self.events[0][1].query():
            start, end = self.events.pop(0)
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
