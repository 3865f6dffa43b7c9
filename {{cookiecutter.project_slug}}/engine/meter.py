"""The speed of a run, and the share of the time in which it computes."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import profile, schedule, tensorboard_trace_handler


@dataclass
class Rates:
    """The speed of some steps of training; shares are of the elapsed time, in [0, 1]."""

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

    The compute efficiency is the time in `computing` as a share of the elapsed time; time outside
    of `waiting` and `computing` counts as neither. On CUDA, whose kernels run after the call that
    starts them has returned, computing is timed by events that the device stamps; the program
    never waits for them. `images` is the number of images of an optimizer step.
    """

    def __init__(self, device: torch.device, images: int) -> None:
        self.cuda, self.images = device.type == "cuda", images
        self.events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self.restart()

    def restart(self) -> None:
        """Starts a new measurement, and drops the events that have finished."""
        self._collect()
        self.begun = time.perf_counter()
        self.waited = self.computed = 0.0  # seconds
        self.steps = 0

    @property
    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the blocks in which the program waits for data."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @property
    @contextmanager
    def computing(self) -> Iterator[None]:
        """For the blocks in which the program computes, or on CUDA gives work to the device."""
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self.events.append((start, end))
        else:
            begun = time.perf_counter()
            yield
            self.computed += time.perf_counter() - begun

    def count_step(self) -> None:
        """A step has been completed, or on CUDA given to the device."""
        self.steps += 1

    def rates(self) -> Rates:
        """The rates since the last start, and starts anew. On CUDA of finished steps alone."""
        elapsed = max(time.perf_counter() - self.begun, 1e-9)
        self._collect()
        rates = Rates(
            self.steps * self.images / elapsed,
            self.waited / elapsed,
            min(1.0, self.computed / elapsed),
        )
        self.restart()
        return rates

    def _collect(self) -> None:
        """Counts the time of the events that the device has passed."""
        while self.events and self.events[0][1].query():
            start, end = self.events.popleft()
            self.computed += start.elapsed_time(end) / 1000  # milliseconds


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
