"""The clock of the contenders that can stop in the middle of an epoch."""

import time

import torch


class Enough(BaseException):
    """Ends a training program from within; a BaseException, so that no program handles it."""


def synchronize() -> None:
    """Waits for the GPU, whose work runs on after the call that starts it has returned."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Stopwatch:
    """Times steps after a warm-up, from the end of one step to the end of another.

    Args:
        warmup: Seconds that are not counted; at least two steps are not.
        seconds: Least time that is counted; at least four steps are.
    """

    def __init__(self, warmup: float, seconds: float) -> None:
        self.warmup, self.seconds = warmup, seconds
        self.created = time.perf_counter()
        self.begun: float | None = None
        self.steps = self.images = 0

    def done(self, images: int) -> bool:
        """Notes a step on `images` images; returns whether enough has been seen."""
        self.steps += 1
        if self.begun is None:
            if self.steps >= 2 and time.perf_counter() - self.created >= self.warmup:
                synchronize()
                self.begun, self.steps = time.perf_counter(), 0
            return False
        self.images += images
        if self.steps < 4 or time.perf_counter() - self.begun < self.seconds:
            return False
        synchronize()
        self.elapsed = time.perf_counter() - self.begun
        return True

    def result(self) -> dict[str, float]:
        return {"images_per_s": self.images / self.elapsed, "timed_s": self.elapsed}
