"""How fast a run is, and how much of its time is the network's own."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from tqdm import tqdm


def make_bar(title: str, total: int, done: int) -> tqdm:
    """A progress bar that leaves room for what is written behind it; none if nobody looks."""
    layout = "{desc} {percentage:3.0f}%|{bar:6}| {n_fmt}/{total_fmt} {remaining}{postfix}"
    return tqdm(total=total, initial=done, desc=title, bar_format=layout, leave=False, disable=None)


@dataclass
class Rates:
    """What a stretch of training achieved; the shares are of the elapsed time, in [0, 1]."""

    images_per_second: float
    data_wait: float
    efficiency: float

    def __str__(self) -> str:
        return (
            f"efficiency {self.efficiency:.0%}, data wait {self.data_wait:.0%}, "
            f"{self.images_per_second:,.0f} images/s"
        )


class Meter:
    """Times the two parts of every step: waiting for data, then computing.

    Call `waiting` before a batch is asked for, `loaded` when it has arrived, and `computed` when
    its step has been given to the device. Compute efficiency is the share of the elapsed time that
    the steps would take by themselves, on data that are already there.

    On CUDA, whose kernels run after the call that starts them has returned, a step's own time is
    read from events which the device stamps; the program never waits for them. On the CPU, worker
    processes take cores away from the step they load for, and lengthen it. There the batches of the
    first few steps are to be loaded before the workers start, and show what a step takes.

    Args:
        device: Where the steps are computed.
        shared: Whether worker processes share the device with the steps.
        parts: Batches in a step, of which the last brings the update of the weights.
    """

    QUIET = 5

    def __init__(self, device: torch.device, shared: bool, parts: int = 1) -> None:
        self.cuda, self.shared = device.type == "cuda", shared and device.type == "cpu"
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.parts = parts
        self.step: list[float] = []  # the times of the parts of the step under way
        self.quiet: list[float] = []  # the times of steps that nothing disturbed
        self.steps = max(2, -(-self.QUIET // parts))  # how many of them are wanted
        self.restart()

    @property
    def wanted(self) -> int:
        """How many batches are to be loaded beforehand."""
        return (self.steps - len(self.quiet)) * self.parts if self.shared else 0

    def restart(self) -> None:
        """Forgets what was measured, and starts now; steps still on the device count from here."""
        self.begun = self.mark = time.perf_counter()
        self.waited = self.computed_for = 0.0
        self.images = 0

    def waiting(self) -> None:
        """The batch is asked for: what was done since the last step is neither wait nor step."""
        self._lap()

    def loaded(self) -> None:
        """The batch is here: what follows is computing."""
        self.waited += self._lap()
        if self.cuda:
            self.start = torch.cuda.Event(enable_timing=True)
            self.start.record()

    def computed(self, images: int) -> None:
        """The step on `images` images has been done, or on CUDA given to the device."""
        lap = self._lap()
        self.images += images
        if self.cuda:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self.events.append((self.start, end))
        elif not self.shared:
            self.computed_for += lap
        else:
            self.step.append(lap)
            if len(self.step) == self.parts:
                self.computed_for += self._undisturbed(sum(self.step))
                self.step = []

    def rates(self) -> Rates:
        """The rates since the last `restart`; on CUDA over those steps that the device has done."""
        elapsed = max(time.perf_counter() - self.begun, 1e-9)
        while self.events and self.events[0][1].query():
            start, end = self.events.pop(0)
            self.computed_for += start.elapsed_time(end) / 1000  # milliseconds
        return Rates(
            self.images / elapsed, self.waited / elapsed, min(1.0, self.computed_for / elapsed)
        )

    def _undisturbed(self, taken: float) -> float:
        """What a step that has taken so long would take by itself."""
        if len(self.quiet) < self.steps:
            self.quiet.append(taken)
            return taken
        return min(taken, median(self.quiet[1:]))  # the first one also prepares the kernels

    def _lap(self) -> float:
        before, self.mark = self.mark, time.perf_counter()
        return self.mark - before
