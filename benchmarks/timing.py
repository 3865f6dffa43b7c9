"""The clock of the contenders."""

import time
from typing import Any

import torch

Spec = dict[str, Any]  # what a measurement gets, see runner.measure
Result = dict[str, Any]  # what it returns, see report.COLUMNS


class Enough(BaseException):
    """Ends a training program from within; a BaseException, so that no program handles it."""


def now() -> float:
    """Seconds by the clock of intervals, after the GPU has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Times training steps after a warm-up, from the end of one step to the end of another.

    Args:
        spec: "warmup" are the seconds before the timing, "seconds" the least that is timed.
        block: The timing begins and ends at a multiple of so many steps.
    """

    def __init__(self, spec: Spec, block: int = 4) -> None:
        self.least, self.block = [spec["seconds"], spec["warmup"]], block  # the last comes first
        self.begun, self.steps, self.images = now(), 0, 0

    def done(self, images: int) -> bool:
        """Counts a step on `images` images; returns whether enough has been timed."""
        self.steps, self.images = self.steps + 1, self.images + images
        if self.steps % self.block or time.perf_counter() - self.begun < self.least[-1]:
            return False
        end = now()
        self.result = {"images_per_s": self.images / (end - self.begun)}
        self.begun, self.steps, self.images = end, 0, 0
        self.least.pop()
        return not self.least
