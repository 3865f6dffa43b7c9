"""Two reasons to stop before the end: somebody says so, or the loss is no longer a number."""

import math
import signal
from types import FrameType
from typing import NoReturn

import torch
from torch import Tensor

from engine.checkpoint import Checkpoints
from engine.errors import BadInput


class StopSignal:
    """True once SIGINT, SIGTERM or SIGUSR1 has come; a second SIGINT interrupts at once.

    A signal is only noted, so that the step under way can be finished and saved.
    """

    def __init__(self) -> None:
        self.received = ""  # the name of the signal
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            number = getattr(signal, name, None)  # Windows has only some of them
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return bool(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class FiniteGuard:
    """Finds a loss or gradient that is not finite without making the device wait at every step.

    On the CPU each is looked at as it comes, before it can touch the weights. Elsewhere the device
    keeps the first bad step for itself; `check` asks for it, before anything is logged or saved.
    """

    def __init__(self, device: torch.device, checkpoints: Checkpoints) -> None:
        self.at_once, self.checkpoints = device.type == "cpu", checkpoints
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def watch(self, value: Tensor, n_iter: int) -> None:
        """Notes whether a scalar, the loss or the norm of the gradient of a step, is finite."""
        if self.at_once:
            if not math.isfinite(value.item()):
                self._refuse(n_iter)
            return
        bad = ~torch.isfinite(value.detach())
        self.first_bad = torch.where(bad & (self.first_bad < 0), n_iter, self.first_bad)

    def check(self) -> None:
        """Raises BadInput that names the first bad step and the last good checkpoint, if any."""
        if (n_iter := int(self.first_bad.item())) >= 0:
            self._refuse(n_iter)

    def _refuse(self, n_iter: int) -> NoReturn:
        self.checkpoints.wait()
        last = self.checkpoints.last
        raise BadInput(
            f"the loss or the gradient of step {n_iter} is not finite; "
            + (f"the last good checkpoint is {last}; " if last.exists() else "")
            + "try a lower --lr, a longer --warmup or --clip-grad 1"
        )
